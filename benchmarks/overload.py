"""`puna serve` with ten tenants: tokens a second at its capacity and at four times the load, and each tenant's share.

    python benchmarks/overload.py build/bench/1b-int4 --seconds 60 --tokens 64

Loads come in turns, round after round; a share is the median over the rounds. The model has random weights
(random_models.py), so that no answer ends before its last token.
Patient clients wait after a 503 as long as Retry-After says, up to a second; a storm asks again after 0.05 seconds. The
clients (tests/serving/http_load.py) run in one process beside the server, on the same machine.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests" / "serving"
sys.path.insert(0, str(TESTS))

from http_load import KEYS, Outcome  # noqa: E402

COMMAND = [sys.executable, "-c", "from puna.cli import main; main()", "serve"]
SLOTS = 32  # requests in the engine's batch; the queue holds four times as many
LOADS = {
    "capacity": (4, 1.0),
    "4x, patient": (SLOTS * 4 * 4 // len(KEYS), 1.0),
    "4x, storm": (SLOTS * 4 * 4 // len(KEYS), 0.05),
}


@contextmanager
def serving(checkpoint: Path) -> Iterator[int]:
    """Start `puna serve` with a key for each tenant; yield the port."""
    with tempfile.TemporaryDirectory() as folder:
        keys, log_path = Path(folder, "keys.txt"), Path(folder, "log")
        keys.write_text("\n".join(KEYS))
        flags = ["--port", "0", "--name", "tiny", "--max-batch", str(SLOTS), "--max-queue", str(4 * SLOTS)]
        environment = os.environ | {"PYTHONPATH": str(TESTS.parent / "src")}
        command = [*COMMAND, str(checkpoint), *flags, "--api-key-file", str(keys)]
        with (
            log_path.open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log, env=environment) as server,
        ):
            try:
                while not (found := re.search(r"running on http://[^:]+:(\d+)", log_path.read_text())):
                    assert server.poll() is None, log_path.read_text()
                yield int(found[1])
            finally:
                server.send_signal(signal.SIGTERM)


def run(port: int, num_clients: int, patience: float, seconds: float, tokens: int) -> Outcome:
    """Let every tenant have so many clients for some seconds."""
    load = {"port": port, "clients": [num_clients] * len(KEYS), "patience": patience}
    load |= {"seconds": seconds, "max_tokens": tokens, "is_streamed": True}
    command = [sys.executable, str(TESTS / "http_load.py"), json.dumps(load)]
    return Outcome.from_json(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a request")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in LOADS}
    with serving(options.checkpoint) as port:
        run(port, 1, 1.0, 3, options.tokens)
        for _ in range(options.rounds):
            for name, (num_clients, patience) in LOADS.items():
                outcomes[name].append(run(port, num_clients, patience, options.seconds, options.tokens))
                print(f"{name}: {outcomes[name][-1].tokens_per_second:.0f} tokens/s", file=sys.stderr)
    print("| load | tokens/s | of capacity | most / least tokens of a tenant | answered | refused | broken |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    capacities = [outcome.tokens_per_second for outcome in outcomes["capacity"]]
    for name, found in outcomes.items():
        rates = [outcome.tokens_per_second for outcome in found]
        share = statistics.median(rate / capacity for rate, capacity in zip(rates, capacities, strict=True))
        tokens = [sum(each) for each in zip(*(outcome.tokens for outcome in found), strict=True)]
        answered, refused = (sum(outcome.statuses.get(status, 0) for outcome in found) for status in ("200", "503"))
        row = f"{statistics.median(rates):.0f} | {share:.2f} | {max(tokens) / max(1, min(tokens)):.2f}"
        print(f"| {name} | {row} | {answered} | {refused} | {sum(len(outcome.broken) for outcome in found)} |")


if __name__ == "__main__":
    main()
