"""The server under many clients: every request is answered or refused, tenants get equal shares, overload costs little.

The engine is a script in a process of its own, whose speed is known; clients are raw sockets in another process.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from http_load import KEYS, Outcome
from test_engine_process import CHILD
from test_serve import serving

from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.serving.generation.engine_process import EngineProcess
from puna.serving.middleware.rules import make_rules
from puna.serving.served_model import ServedModel

TOKENS, SLOTS, PAUSE = 16, 32, 0.04

Load = Callable[..., Outcome]


@pytest.fixture
def load(tokenizer_path, tmp_path) -> Iterator[Load]:
    """A server with a key for each of ten tenants; returns what lets clients loose on it."""
    tokenizer = Tokenizer.load(tokenizer_path)
    (tmp_path / "keys.txt").write_text("\n".join(KEYS))
    spec = {"pause": PAUSE, "slots": SLOTS, "starts": str(tmp_path / "starts")}
    engine = EngineProcess(spec, command=CHILD, max_jobs=4 * SLOTS)
    facts, chat_format = engine.open(), ChatFormat(tokenizer)
    served = ServedModel("tiny", tokenizer, chat_format, engine, facts.max_context, facts.stop_ids, facts.defaults)
    with serving(served, make_rules("127.0.0.1", tmp_path / "keys.txt", {})) as url:
        yield lambda **load: run_clients(url, **load)
    assert engine.admission.held == {}


def run_clients(url: str, **load) -> Outcome:
    """Run the clients in a process of their own: the server's event loop is in this one."""
    program = Path(__file__).with_name("http_load.py")
    command = [sys.executable, str(program), json.dumps({"port": int(url.rpartition(":")[2]), **load})]
    return Outcome.from_json(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.mark.parametrize(
    "count", [60, pytest.param(2_000, marks=pytest.mark.tenth), pytest.param(20_000, marks=pytest.mark.slow)]
)
def test_every_request_of_200_streaming_clients_is_answered_or_refused(load, count):
    outcome = load(clients=[min(20, count // 10)] * 10, count=count, is_streamed=True, patience=1.0)
    assert outcome.num_answers == count and not outcome.broken
    assert set(outcome.statuses) <= {"200", "503"}
    assert sum(outcome.tokens) == TOKENS * outcome.statuses["200"] > 0


@pytest.mark.parametrize(
    "seconds", [pytest.param(12, marks=pytest.mark.tenth), pytest.param(120, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("patience", [1.0, 0.05], ids=["patient", "storm"])
def test_four_times_the_load_costs_little_and_is_shared(load, seconds, patience):
    alone = load(clients=[4] * 10, seconds=max(5, seconds / 6), patience=1.0)
    outcome = load(clients=[SLOTS * 4 * 4 // 10] * 10, seconds=seconds, patience=patience)
    goodput = outcome.tokens_per_second / alone.tokens_per_second
    spread = max(outcome.tokens) / min(outcome.tokens)
    print(
        f"{seconds} s at four times the load: {goodput:.2f} of the capacity ({alone.tokens_per_second:.0f} tokens/s), "
        f"tenants within {spread - 1:.1%}, {outcome.statuses}"
    )
    assert set(outcome.statuses) == {"200", "503"} and not outcome.broken
    assert min(outcome.tokens) > 0
    if seconds == 120:
        assert goodput >= 0.9 and spread <= 1.1


@pytest.mark.tenth
def test_400_clients_of_one_key_leave_five_of_another_their_answers(load):
    outcome = load(clients=[400, 5, *[0] * 8], seconds=4, patience=0.05)
    assert not outcome.broken and outcome.refused[0] > 0
    assert outcome.refused[1] == 0 and outcome.tokens[1] >= 5 * TOKENS


@pytest.mark.tenth
def test_two_requests_that_fill_the_queue_leave_another_key_its_answers(load):
    def many() -> None:
        load(clients=[2, *[0] * 9], count=2, patience=1.0, n=64, max_tokens=30)

    thread = threading.Thread(target=many)
    thread.start()
    time.sleep(1.0)
    outcome = load(clients=[0, 5, *[0] * 8], count=45, patience=1.0)
    thread.join()
    assert outcome.statuses == {"200": 45}
