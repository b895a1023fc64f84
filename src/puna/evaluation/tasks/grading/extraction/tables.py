"""Words for months, weekdays, numbers, units and currencies in en, de, fr, it, pt, hi, es and th, as data."""

import re
import unicodedata
from collections.abc import Iterable

from puna.evaluation.tasks.grading.extraction.number_words import number_words


def _index(*columns: str, first: int = 1) -> dict[str, int]:
    """Number the columns: {"january": 1, "januar": 1, "february": 2, ...}."""
    return {
        unicodedata.normalize("NFC", word): number
        for number, column in enumerate(columns, first)
        for word in column.split("|")
    }


def _invert(table: dict[str, str]) -> dict[str, str]:
    return {unicodedata.normalize("NFC", word): name for name, words in table.items() for word in words.split("|")}


MONTHS = _index(
    "january|jan|januar|jänner|janvier|gennaio|janeiro|enero|जनवरी|มกราคม|ม.ค.",
    "february|feb|februar|février|febbraio|fevereiro|febrero|फरवरी|फ़रवरी|กุมภาพันธ์|ก.พ.",
    "march|mar|märz|mars|marzo|março|मार्च|มีนาคม|มี.ค.",
    "april|apr|avril|aprile|abril|अप्रैल|เมษายน|เม.ย.",
    "may|mai|maggio|maio|mayo|मई|พฤษภาคม|พ.ค.",
    "june|jun|juni|juin|giugno|junho|junio|जून|มิถุนายน|มิ.ย.",
    "july|jul|juli|juillet|luglio|julho|julio|जुलाई|กรกฎาคม|ก.ค.",
    "august|aug|août|agosto|अगस्त|สิงหาคม|ส.ค.",
    "september|sept|sep|septembre|settembre|setembro|septiembre|सितंबर|सितम्बर|กันยายน|ก.ย.",
    "october|oct|oktober|okt|octobre|ottobre|outubro|octubre|अक्टूबर|अक्तूबर|ตุลาคม|ต.ค.",
    "november|nov|novembre|novembro|noviembre|नवंबर|नवम्बर|พฤศจิกายน|พ.ย.",
    "december|dec|dezember|dez|décembre|dicembre|dezembro|diciembre|दिसंबर|दिसम्बर|ธันวาคม|ธ.ค.",
)
# Months that are words of their own as well: a date only beside a day or a year.
AMBIGUOUS_MONTHS = {"may", "march", "mar", "mars", "jan", "sep", "dec", "dez", "jun", "jul", "aug", "apr", "nov"}

WEEKDAYS = _index(
    "monday|mondays|montag|montags|lundi|lundis|lunedì|segunda-feira|lunes|सोमवार|วันจันทร์",
    "tuesday|tuesdays|dienstag|dienstags|mardi|mardis|martedì|terça-feira|martes|मंगलवार|วันอังคาร",
    "wednesday|wednesdays|mittwoch|mittwochs|mercredi|mercredis|mercoledì|quarta-feira|miércoles|बुधवार|วันพุธ",
    "thursday|thursdays|donnerstag|donnerstags|jeudi|jeudis|giovedì|quinta-feira|jueves|गुरुवार|बृहस्पतिवार|วันพฤหัสบดี|วันพฤหัส",
    "friday|fridays|freitag|freitags|vendredi|vendredis|venerdì|sexta-feira|viernes|शुक्रवार|วันศุกร์",
    "saturday|saturdays|samstag|samstags|sonnabend|samedi|samedis|sabato|sábado|sábados|शनिवार|วันเสาร์",
    "sunday|sundays|sonntag|sonntags|dimanche|dimanches|domenica|domingo|domingos|रविवार|इतवार|วันอาทิตย์",
    first=0,
)
# Only as written here: "sun" and "so" are words.
SHORT_WEEKDAYS = _index("Mon|Mo", "Tues|Tue|Di", "Wed|Mi", "Thurs|Thur|Thu|Do", "Fri|Fr", "Sat|Sa", "Sun|So", first=0)

NUMBER_WORDS = {code: number_words(code) for code in ("en", "de", "fr", "it", "pt", "hi", "es", "th")}
# Number words with another meaning ("neuf" is new, "sei" is you are, "दो" is give), and pieces of Thai words.
AMBIGUOUS_NUMBERS = {"neuf", "sei", "दो", *NUMBER_WORDS["th"]}
MAGNITUDES = {
    word: int(factor)
    for word, factor in _invert(
        {
            "1_000": "thousand|tausend|mille|mila|mil|हज़ार|हजार|พัน",
            "10_000": "หมื่น",
            "100_000": "lakh|lakhs|लाख|แสน",
            "1_000_000": "million|millions|millionen|mio.|mio|milione|milioni|milhão|milhões|millón|millones|ล้าน",
            "10_000_000": "crore|crores|करोड़",
            "1_000_000_000": "billion|billions|milliarde|milliarden|mrd.|mrd|milliard|milliards|miliardo|miliardi",
        }
    ).items()
}

PERCENT = _invert({"%": "%|percent|per cent|pct|prozent|pour cent|per cento|por cento|por ciento|प्रतिशत|เปอร์เซ็นต์"})
CURRENCIES = _invert(
    {
        "EUR": "€|eur|euro|euros|यूरो|ยูโร",
        "USD": "us$|$|usd|dollar|dollars|dollari|dólar|dólares|डॉलर|ดอลลาร์",
        "GBP": "£|gbp|pound|pounds|pfund|sterline|libras|पाउंड|ปอนด์",
        "INR": "₹|inr|rs.|rs|rupee|rupees|rupien|roupies|rupie|rupias|रुपये|रुपए|रुपया|รูปี",
        "THB": "฿|thb|baht|bahts|बात|บาท",
        "BRL": "r$|brl|real|reais|reales",
        "CHF": "chf|franken|francs|franchi|francos",
        "JPY": "¥|jpy|yen",
    }
)
# Currencies that are words or pieces of words: only after a number.
AFTER_ONLY = {"real", "बात", "francs", "pound", "pounds", "libras"}
UNITS = _invert(
    {
        "second": "s|sec|second|seconds|sekunde|sekunden|seconde|secondes|secondo|secondi|segundo|segundos|सेकंड|วินาที",
        "minute": "min|min.|minute|minutes|minuten|minuto|minuti|minutos|मिनट|นาที",
        "hour": "h|hr|hrs|hour|hours|stunde|stunden|heure|heures|ora|ore|hora|horas|घंटे|घंटा|ชั่วโมง",
        "day": "day|days|tag|tage|tagen|jour|jours|giorno|giorni|dia|dias|día|días|दिन|दिनों|วัน",
        "business day": "business days|business day|working days|working day|werktage|werktagen|arbeitstage|"
        "arbeitstagen|jours ouvrés|jours ouvrables|giorni lavorativi|dias úteis|días hábiles|"
        "कार्य दिवस|कार्यदिवस|วันทำการ",
        "week": "week|weeks|woche|wochen|semaine|semaines|settimana|settimane|semana|semanas|सप्ताह|हफ्ते|हफ़्ते|สัปดาห์",
        "month": "month|months|monat|monate|monaten|mois|mese|mesi|mês|meses|mes|महीने|महीना|เดือน",
        "year": "year|years|jahr|jahre|jahren|ans|année|années|anno|anni|ano|anos|año|años|साल|वर्ष|ปี",
        "km": "km|kilometers|kilometres|kilometer|kilometre|kilomètres|chilometri|quilômetros|kilómetros|"
        "किलोमीटर|กิโลเมตร",
        "m": "m|meters|metres|meter|metre|mètres|metri|metros|मीटर|เมตร",
        "cm": "cm",
        "mm": "mm",
        "mile": "mile|miles|meilen|milles|miglia|milhas|millas",
        "kg": "kg|kilo|kilos|kilograms|kilogramm|kilogrammes|किलो|किलोग्राम|กิโลกรัม|กก.",
        "g": "g|grams|gramm|grammes|grammi|gramas|gramos|ग्राम|กรัม",
        "mg": "mg",
        "ounce": "oz|ounce|ounces",
        "l": "l|liters|litres|liter|litre|litri|litros|लीटर|ลิตร",
        "ml": "ml",
        "GB": "gb|gigabyte|gigabytes|gigaoctets",
        "MB": "mb|megabyte|megabytes|mégaoctets",
        "TB": "tb|terabyte|terabytes",
        "kWh": "kwh",
        "kW": "kw",
        "degree C": "°c|° c",
        "degree F": "°f|° f",
        "person": "people|persons|person|personen|personnes|persone|pessoas|personas|लोग|लोगों|คน",
    }
)

MORNING = "a.m.|am|a.m|morgens|vormittags|du matin|di mattina|del mattino|da manhã|de la mañana|तड़के|सुबह|โมงเช้า|เช้า"
EVENING = (
    "p.m.|pm|p.m|nachmittags|abends|du soir|de l'après-midi|di sera|del pomeriggio|di pomeriggio|da tarde|da noite|"
    "de la tarde|de la noche|शाम|रात|दोपहर|บ่าย"
)

FUNCTION_WORDS = {
    "en": "the is are you your we and of to for it on with this that can have not will at",
    "de": "der die das ist sind sie wir und von zu für es auf mit den nicht ein eine kann ihr im dem am um",
    "fr": "le la les est sont vous nous et de du pour il sur avec des pas une un à au votre dans ce",
    "it": "il la gli è sono lei noi e di del per lo su con non una un alle dalle può della che i nel",
    "pt": "o a os as é são você nós e de do para em com não uma um no na das às seu que",
    "es": "el la los las es son usted nosotros y de del para en con no una un su que al se por",
}

# Letters on which a word goes on: Latin and Devanagari. Thai has no spaces between words.
LETTER = "A-Za-zÀ-ɏ\u0900-\u0963\u0970-\u097f"


def any_of(words: Iterable[str]) -> str:
    """Return a pattern for any of the words as a whole, the longest first; Thai words match within a text.

    Example:
        >>> re.compile(any_of(["day", "days"])).match("days")[0]
        'days'
    """
    words = sorted(words, key=len, reverse=True)
    choices = "|".join(map(re.escape, words))
    # One look at the first character spares a try of every word at most places.
    first = "".join(sorted({re.escape(word[0]) for word in words}))
    return rf"(?<![{LETTER}])(?=[{first}])(?:{choices})(?![{LETTER}])"


def guess_language(text: str) -> str:
    """Return the ISO 639-1 code of a text's language among the eight, "" where its words do not tell.

    Example:
        >>> guess_language("Wir öffnen um neun Uhr und schließen um fünf.")
        'de'
    """
    if re.search(r"[\u0900-\u097f]{2}", text):
        return "hi"
    if re.search(r"[\u0e00-\u0e7f]{2}", text):
        return "th"
    words = re.findall(r"[^\W\d_]+", text.casefold())
    counts = {
        code: sum((word in known.split()) + (word in NUMBER_WORDS[code]) for word in words)
        for code, known in FUNCTION_WORDS.items()
    }
    first, second = sorted(counts, key=lambda code: counts[code], reverse=True)[:2]
    return first if counts[first] > counts[second] else ""
