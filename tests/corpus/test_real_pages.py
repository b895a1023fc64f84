"""benchmarks/real_pages.py asks for spans that stand once on a page, in words that stand once on it."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "real_pages.py"
TEACHER = Path(__file__).parents[2] / "recipes" / "teacher"
PAGE = """# Lending

Every [member](https://lending.example/members) may borrow up to 12 telescopes from the eastern store room at a time.

* Damaged telescopes are repaired by the workshop within 45 working days after they were returned.
* Write to observatory@lending.example if the sky over the observatory was cloudy for weeks.

The yearly contribution for families is $1,250 and is collected on March 3, 2024 by the treasurer.
"""


def test_it_prints_the_scores_of_a_checkpoint_by_form_and_kind(tmp_path: Path) -> None:
    pages = tmp_path / "pages.jsonl.gz"
    with gzip.open(pages, "wt", encoding="utf-8") as file:
        file.write(json.dumps({"id": "lending.md", "text": PAGE}) + "\n")
    command = [sys.executable, BENCHMARK, pages, "--checkpoint", TEACHER, "--examples", "20"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    for span in ("12", "45", "observatory@lending.example", "$1,250", "March 3, 2024"):
        assert f"expected {span!r}" in shown
    assert "lending.example/members" not in shown
    assert "How many telescopes from the eastern store room" in shown
    for label in ("all", "about", "kind", "number", "e-mail", "amount", "date"):
        assert re.search(rf"recipes/teacher +{label} +\d+ ", shown), label
