"""Hostile clients in numbers: idle connections beyond the open files, malformed requests, disconnects at any point."""

import random
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from test_serve import CHAT, SENTENCES, ScriptedEngine, save_tiny, scripted, serving, wait_until
from test_serve_connections import connections, exchange, port_of, post, seconds_of_health

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer
from puna.serving.serve import open_served

FEW_FILES = """
import resource, sys
number = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
from test_serve import ScriptedEngine, scripted, serving
from puna.formats.tokenizer.tokenizer import Tokenizer

tokenizer = Tokenizer.load(sys.argv[1])
with serving(scripted(tokenizer, ScriptedEngine(tokenizer, []))) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*SENTENCES] * 20, vocab_size=552, split_digits=True)


@pytest.mark.parametrize("data", [b"", b"GET /health HTTP/1.1\r\nhost: a\r\n", b"nonsense\r\n\r\n"])
@pytest.mark.parametrize(
    ("num_files", "num_connections"), [(128, 150), pytest.param(1024, 1100, marks=pytest.mark.slow)]
)
def test_more_connections_than_open_files_leave_the_server_answering(
    tokenizer, tmp_path, num_files, num_connections, data
):
    tokenizer.save(tmp_path)
    log = tmp_path / "log"
    command = [sys.executable, "-c", FEW_FILES, str(tmp_path), str(num_files)]
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=Path(__file__).parent,
        ) as server,
    ):
        assert server.stdin and server.stdout
        url = server.stdout.readline().strip()
        longest = 0.0
        with connections(url, num_connections, data):
            for _ in range(10):
                longest = max(longest, seconds_of_health(url))
                time.sleep(0.02)
            with connections(url, num_connections, data):
                longest = max(longest, seconds_of_health(url))
        longest = max(longest, seconds_of_health(url))
        server.stdin.close()
    assert longest < 1.0
    assert log.stat().st_size < 40_000 and "Traceback" not in log.read_text()


def mutated(chance: random.Random, request: bytes) -> bytes:
    """Return a request with a few bytes changed, removed, repeated or put in."""
    changed = bytearray(request)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) or 1)
        length = chance.choice([1, 1, 2, 8, 100])
        kind = chance.randrange(6)
        if kind == 0:
            changed[at : at + length] = chance.randbytes(length)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length] * chance.choice([2, 50])
        elif kind == 3:
            changed[at:at] = chance.choice(
                [b"\0", b"\r\n", b"\r\n\r\n", b":", b" ", b"%", b"\xff", b"{" * 200, b"1e999"]
            )
        elif kind == 4:
            del changed[at:]
        else:
            words = [
                b"content-length: 18446744073709551616\r\n",
                b"transfer-encoding: chunked\r\n",
                b"expect: 100-continue\r\n",
            ]
            changed[:] = changed.replace(b"\r\n", b"\r\n" + chance.choice(words), 1)
    return bytes(changed)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(50),
        pytest.param(500, marks=pytest.mark.tenth),
        pytest.param(5000, marks=pytest.mark.slow),
    ],
)
def test_malformed_requests_are_4xx_within_a_second(tokenizer, count):
    chance = random.Random(17)
    valid = [
        post(CHAT),
        post({"model": "tiny", "prompt": "We open", "max_tokens": 4}, path="/v1/completions"),
        post(CHAT | {"stream": True}),
        b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n",
        post(CHAT).replace(b"content-length", b"transfer-encoding: chunked\r\nx-length"),
    ]
    engine = ScriptedEngine(tokenizer, [*tokenizer.encode("We open at nine."), tokenizer.special("eot_id")])
    seconds: list[float] = []
    with serving(scripted(tokenizer, engine, max_jobs=64)) as url:

        def ask(seed: int) -> None:
            chance = random.Random(seed)
            begin = time.monotonic()
            answer = exchange(url, mutated(chance, chance.choice(valid)), half_close=True)
            seconds.append(time.monotonic() - begin)
            statuses = {int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)}
            assert not {status for status in statuses if status >= 500 and status != 503}, (seed, answer)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, [chance.randrange(1 << 40) for _ in range(count)]))
        assert seconds_of_health(url) < 1.0
        wait_until(lambda: not engine.running)
    assert sorted(seconds)[int(0.99 * count) - 1] < 1.0 and max(seconds) < 5.0


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(20),
        pytest.param(100, marks=pytest.mark.tenth),
        pytest.param(1000, marks=pytest.mark.slow),
    ],
)
def test_two_seconds_after_disconnects_nothing_runs_and_every_page_is_free(tmp_path, count):
    served = open_served(save_tiny(tmp_path / "tiny", SENTENCES, num_merges=40, max_context=1024))
    engine = served.engine._engine  # type: ignore[attr-defined]

    def leave(url: str, seed: int) -> None:
        chance = random.Random(seed)
        body = CHAT | {"stream": chance.random() < 0.5, "n": chance.randint(1, 3), "max_tokens": 400}
        data = post(body) * chance.choice([1, 1, 1, 2])
        with socket.create_connection(("127.0.0.1", port_of(url)), timeout=5) as connection, suppress(OSError):
            connection.sendall(data[: chance.choice([len(data)] * 3 + [chance.randrange(len(data))])])
            if chance.random() < 0.3:
                connection.shutdown(socket.SHUT_WR)
            time.sleep(chance.random() * 0.1)
            if chance.random() < 0.3:
                connection.settimeout(0.05)
                connection.recv(chance.randint(1, 2000))
            if chance.random() < 0.2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with serving(served) as url:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda seed: leave(url, seed), range(count)))
        begin = time.monotonic()
        wait_until(lambda: not engine.has_work)
        assert time.monotonic() - begin < 2.0
        assert engine.pool.num_held == 0 and engine.pool.num_available == engine.pool.num_pages
        assert engine.num_waiting == engine.num_running == 0
        assert seconds_of_health(url) < 1.0
