"""Number words from 1 to 99 in en, de, fr, it, pt, es and th, and frequent number words in hi, as data."""

import unicodedata
from collections.abc import Iterable, Iterator

UNITS = {
    "en": "one two three four five six seven eight nine",
    "de": "eins zwei|zwo drei vier fünf sechs sieben acht neun",
    "fr": "un deux trois quatre cinq six sept huit neuf",
    "it": "uno due tre|tré quattro cinque sei sette otto nove",
    "pt": "um dois|duas três quatro cinco seis sete oito nove",
    "hi": "एक दो तीन चार पाँच|पांच छह|छः सात आठ नौ",
    "es": "uno dos tres cuatro cinco seis siete ocho nueve",
    "th": "หนึ่ง สอง สาม สี่ ห้า หก เจ็ด แปด เก้า",
}
TEENS = {
    "en": "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    "de": "zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn",
    "fr": "dix onze douze treize quatorze quinze seize dix-sept dix-huit dix-neuf",
    "it": "dieci undici dodici tredici quattordici quindici sedici diciassette diciotto diciannove",
    "pt": "dez onze doze treze quatorze|catorze quinze dezesseis|dezasseis dezessete|dezassete dezoito "
    "dezenove|dezanove",
    "hi": "दस ग्यारह बारह तेरह चौदह पंद्रह|पन्द्रह सोलह सत्रह अठारह उन्नीस",
    "es": "diez once doce trece catorce quince dieciséis diecisiete dieciocho diecinueve",
    "th": "สิบ สิบเอ็ด สิบสอง สิบสาม สิบสี่ สิบห้า สิบหก สิบเจ็ด สิบแปด สิบเก้า",
}
TENS = {
    "en": "twenty thirty forty fifty sixty seventy eighty ninety",
    "de": "zwanzig dreißig|dreissig vierzig fünfzig sechzig siebzig achtzig neunzig",
    "fr": "vingt trente quarante cinquante soixante soixante-dix quatre-vingts|quatre-vingt quatre-vingt-dix",
    "it": "venti trenta quaranta cinquanta sessanta settanta ottanta novanta",
    "pt": "vinte trinta quarenta cinquenta sessenta setenta oitenta noventa",
    "hi": "बीस तीस चालीस पचास साठ सत्तर अस्सी नब्बे",
    "es": "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
    "th": "ยี่สิบ สามสิบ สี่สิบ ห้าสิบ หกสิบ เจ็ดสิบ แปดสิบ เก้าสิบ",
}
# Tens and unit joined, by language; "{stem}" is the word of the tens without its last letter.
JOINED = {
    "en": ("{tens}-{unit}", "{tens} {unit}"),
    "de": ("{unit}und{tens}",),
    "fr": ("{tens}-{unit}", "{tens} {unit}", "{tens} et {unit}", "{tens}-et-{unit}"),
    "it": ("{tens}{unit}", "{stem}{unit}"),
    "pt": ("{tens} e {unit}",),
    "es": ("{tens} y {unit}",),
    "th": ("{tens}{unit}",),
}
MORE = {
    "de": {f"einund{tens}": 10 * n + 1 for n, words in enumerate(TENS["de"].split(), 2) for tens in words.split("|")},
    "es": {"veintiún": 21, "veintiuna": 21, "veintidós": 22, "veintitrés": 23, "veintiséis": 26}
    | {f"veinti{unit}": 20 + n for n, unit in enumerate(UNITS["es"].split(), 1)},
    "hi": {"इक्कीस": 21, "चौबीस": 24, "पच्चीस": 25, "अट्ठाईस": 28, "पैंतीस": 35, "पैंतालीस": 45},
    "th": {f"{tens}เอ็ด": 10 * n + 1 for n, tens in enumerate(TENS["th"].split(), 2)},
}
# Words for hundreds: a number word beside a word of this list is part of a larger number.
HUNDREDS = """
hundred hundreds hundert cent cents cento cem duzentos duzentas trezentos trezentas quatrocentos quinhentos quinhentas
seiscentos setecentos oitocentos novecentos cien ciento doscientos doscientas trescientos trescientas cuatrocientos
quinientos quinientas seiscientos setecientos ochocientos novecientos सौ ร้อย
"""


def number_words(language: str) -> dict[str, int]:
    """Return all number words of a language, in NFC and lower case, with values.

    Example:
        >>> number_words("en")["twenty-two"]
        22
    """
    words = dict(_counted(UNITS[language], range(1, 10)))
    words |= _counted(TEENS[language], range(10, 20))
    tens = dict(_counted(TENS[language], range(20, 100, 10)))
    # French counts on from 60 and 80: soixante-douze, quatre-vingt-treize.
    units = {word: value for word, value in words.items() if value < (20 if language == "fr" else 10)}
    for tens_word, ten in tens.items():
        for unit_word, unit in units.items():
            if unit < 10 or ten in (60, 80):
                for form in JOINED.get(language, ()):
                    words[form.format(tens=tens_word, stem=tens_word[:-1], unit=unit_word)] = ten + unit
    words |= tens | MORE.get(language, {})
    return {unicodedata.normalize("NFC", word): value for word, value in words.items()}


def _counted(words: str, values: Iterable[int]) -> Iterator[tuple[str, int]]:
    return (
        (word, value) for spellings, value in zip(words.split(), values, strict=True) for word in spellings.split("|")
    )
