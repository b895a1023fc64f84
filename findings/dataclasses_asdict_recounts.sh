#!/bin/sh
# Surprise: dataclasses.asdict does not copy a Counter but counts it again: Counter({"200": 5, "503": 2}) comes back as
#   Counter({("200", 5): 1, ("503", 2): 1}). No error is raised; the pairs are the new keys. Other subclasses of dict, and
#   defaultdict since Python 3.12, are copied as one expects.
# Why it matters here: results of runs and of load tests are dataclasses with counts by kind, written as JSON. json.dumps
#   refuses the pairs as keys, but a sum over the values gives the number of kinds in place of the number of answers.
#   `vars(result)` gives the fields as they are.
# Source: run with Python 3.11.7, 3.12.1 and 3.13.0; Lib/dataclasses.py, _asdict_inner: type(obj)(pairs) for every subclass of dict.
set -eu
python3 - <<'PYTHON'
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field


@dataclass
class Outcome:
    statuses: Counter = field(default_factory=Counter)


outcome = Outcome(Counter({"200": 5, "503": 2}))
found = asdict(outcome)["statuses"]
print(f"Python {sys.version.split()[0]}; given {outcome.statuses}, asdict {found}")
print(f"answers: {sum(outcome.statuses.values())} given, {sum(found.values())} after asdict")
sys.exit(0 if found == Counter({("200", 5): 1, ("503", 2): 1}) else "the behaviour has changed")
PYTHON
