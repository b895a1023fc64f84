#!/bin/sh
# Surprise: rouge-score gives 0.0 to an answer that is identical to its reference when the text is Hindi or Thai, and
#   drops the accented letters of French: its default tokenizer keeps a to z and 0 to 9 only, and raises nothing.
# Why it matters here: ROUGE-L is the usual similarity of answers to references. In two of Llama 3.1's eight languages
#   every model, the perfect one too, would score 0. Puna shows chrF, which counts characters of any script.
# Source: run by us; rouge_score/tokenize.py and tokenizers.py of the package (DefaultTokenizer).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rouge-score==0.1.2 sacrebleu==2.5.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

from rouge_score import rouge_scorer
from sacrebleu.metrics import CHRF

scorer, chrf = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False), CHRF()
texts = {
    "English": "The shop opens at nine o'clock.",
    "Hindi": "दुकान नौ बजे खुलती है।",
    "Thai": "ร้านเปิดเวลาเก้าโมงเช้า",
}
print("rouge-score", version("rouge-score"), "sacrebleu", version("sacrebleu"))
found = {}
for language, text in texts.items():
    found[language] = scorer.score(text, text)["rougeL"].fmeasure
    print(f"{language}: ROUGE-L of a text with itself {found[language]}, chrF {chrf.sentence_score(text, [text]).score:.0f}")
near = scorer.score("à côté", "a c t")["rougeL"].fmeasure
print(f"French: 'à côté' against 'a c t' {near:.2f}")
sys.exit(not (found == {"English": 1.0, "Hindi": 0.0, "Thai": 0.0}))
PYTHON
