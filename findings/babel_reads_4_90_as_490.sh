#!/usr/bin/env bash
# Surprise: Babel's parse_decimal reads "4,90" in English as 490 and "24.90" in German as 2490: a hundred times the price,
#   without an error. It drops group separators wherever they stand, also where no group of three digits follows.
# Why it matters here: the grade `facts` compares amounts in eight languages, and people write "24.90 EUR" in German texts.
#   A reader that trusts the language of the text would call a right price wrong. Ours looks at the digits of each group and
#   keeps both readings where they stay open ("1.234").
# Source: Babel 2.19.0, babel/numbers.py, parse_decimal; https://babel.pocoo.org/en/stable/api/numbers.html
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet babel==2.19.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from babel.numbers import parse_decimal

print(f"Babel {version('babel')}")
for text, language, expected in [("4,90", "en", 490), ("24.90", "de", 2490), ("4.90", "en", None), ("24,90", "de", None)]:
    value = parse_decimal(text, locale=language)
    print(f"{text!r} in {language!r} is {value}")
    assert expected is None or value == expected, "the behaviour is gone"
PYTHON
