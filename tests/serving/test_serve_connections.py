"""Raw sockets from outside: they send nothing, half a request or nonsense, close one side, or never read."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx2
import pytest
from test_serve import HI, KEY, SENTENCES, ScriptedEngine, error_of, scripted, serving, wait_until

from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.formats.tokenizer.train import train_tokenizer
from puna.serving.middleware.rules import Rules, make_rules
from puna.serving.protocol.connections import ConnectionLimits, address_key
from puna.serving.protocol.log_limit import LogLimit

HEAD = "host: a\r\ncontent-type: application/json\r\n"
LONG = {"model": "tiny", "messages": HI}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*SENTENCES] * 20, vocab_size=552, split_digits=True)


@pytest.fixture(scope="module")
def idle_url(tokenizer) -> Iterator[str]:
    """A server that is asked for nothing that needs its engine."""
    with serving(scripted(tokenizer, ScriptedEngine(tokenizer, []))) as url:
        yield url


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def post(body: dict, *, version: str = "1.1", path: str = "/v1/chat/completions") -> bytes:
    content = json.dumps(body).encode()
    return f"POST {path} HTTP/{version}\r\n{HEAD}content-length: {len(content)}\r\n\r\n".encode() + content


def exchange(url: str, data: bytes, *, half_close: bool = False, timeout: float = 5.0) -> bytes:
    """Send bytes and read until the server closes; what was read so far if it does not."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port_of(url)), timeout=timeout) as connection, suppress(OSError):
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        while more := connection.recv(65_536):
            answer += more
    return answer


def error_in(answer: bytes) -> dict:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    return json.loads(body)["error"]


@contextmanager
def connections(url: str, number: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    try:
        for _ in range(number):
            opened.append(socket.create_connection(("127.0.0.1", port_of(url)), timeout=5))
            if data:
                with suppress(OSError):
                    opened[-1].sendall(data)
        yield opened
    finally:
        for each in opened:
            each.close()


def seconds_of_health(url: str) -> float:
    begin = time.monotonic()
    assert httpx2.get(f"{url}/health", timeout=5).status_code == 200
    return time.monotonic() - begin


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(65_536) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(
    "data", [b"", b"GET /hea", b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{"]
)
def test_connections_beyond_the_bound_close_those_that_wait_longest(tokenizer, data):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000), pause=0.005)
    rules = Rules(connections=ConnectionLimits(total=30, per_address=20))
    with (
        serving(scripted(tokenizer, engine), rules) as url,
        connections(url, 1, post({**LONG, "stream": True})) as busy,
    ):
        wait_until(lambda: engine.running)
        with connections(url, 100, data) as opened:
            assert seconds_of_health(url) < 1.0
            wait_until(lambda: sum(map(is_closed, opened)) >= 80)
            assert not is_closed(opened[-1])
        assert engine.running and busy[0].recv(100)


def test_a_connection_that_no_other_can_give_way_to_is_a_503(tokenizer):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000), pause=0.005)
    rules = Rules(connections=ConnectionLimits(total=2, per_address=2))
    with serving(scripted(tokenizer, engine), rules) as url, connections(url, 2, post(LONG)):
        wait_until(lambda: len(engine.running) == 2)
        answer = httpx2.get(f"{url}/health")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert error_of(answer)["code"] == "overloaded"


def test_headers_that_do_not_come_are_a_408_and_silence_is_closed(tokenizer):
    limits = ConnectionLimits(total=30, per_address=30, head_seconds=0.3)
    with serving(scripted(tokenizer, ScriptedEngine(tokenizer, [])), Rules(connections=limits)) as url:
        assert exchange(url, b"") == b""
        answer = exchange(url, b"GET /health HTTP/1.1\r\nhost: a\r\n")
        assert answer.startswith(b"HTTP/1.1 408") and error_in(answer)["code"] == "request_timeout"
        # A second request on a connection has the same limit.
        answer = exchange(url, b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /hea")
        assert answer.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in answer


def test_a_client_that_never_reads_its_answer_is_closed(tokenizer):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000), pause=0.002)
    limits = ConnectionLimits(total=30, per_address=30, stall_seconds=0.5)
    prompt = "a " * 1900
    with serving(scripted(tokenizer, engine, max_jobs=16), Rules(connections=limits)) as url:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port_of(url)))
            body = {"model": "tiny", "prompt": prompt, "n": 16, "max_tokens": 1500, "stream": True}
            connection.sendall(post(body, path="/v1/completions"))
            wait_until(lambda: len(engine.running) == 16)
            wait_until(lambda: not engine.running)
            assert any(len(request.ids) < 1500 for request in engine.requests)
        assert seconds_of_health(url) < 1.0


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_half_closed_client_gets_its_answer(tokenizer, version, is_streamed):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000), pause=0.02)
    body = {**LONG, "max_tokens": 30, "stream": is_streamed}
    with serving(scripted(tokenizer, engine)) as url:
        answer = exchange(url, post(body, version=version), half_close=True)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.count(b"HTTP/1.1") == 1
    assert b'"finish_reason":"length"' in answer and not engine.aborted
    assert answer.rstrip().endswith((b"}", b"[DONE]", b"0"))


def test_pipelined_requests_of_a_half_closed_client_are_all_answered(tokenizer):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000), pause=0.01)
    with serving(scripted(tokenizer, engine)) as url:
        answer = exchange(url, post({**LONG, "max_tokens": 9}) * 3, half_close=True)
    assert answer.count(b"HTTP/1.1 200 OK") == 3 and answer.count(b'"finish_reason":"length"') == 3


@pytest.mark.parametrize("cut", [10, -5], ids=["in the headers", "in the body"])
def test_half_a_request_of_a_half_closed_client_is_a_400(idle_url, cut):
    answer = exchange(idle_url, post(LONG)[:cut], half_close=True)
    assert answer.startswith(b"HTTP/1.1 400") and "before it is complete" in error_in(answer)["message"]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("leaves", ["closes", "half-closes, then closes", "pipelines, then closes", "resets"])
def test_a_client_that_is_gone_stops_its_generation_within_two_seconds(tokenizer, leaves, is_streamed):
    engine = ScriptedEngine(tokenizer, tokenizer.encode("a " * 2000), pause=0.01)
    with serving(scripted(tokenizer, engine)) as url:
        connection = socket.create_connection(("127.0.0.1", port_of(url)))
        connection.sendall(post({**LONG, "stream": is_streamed}) * (2 if "pipelines" in leaves else 1))
        wait_until(lambda: engine.running)
        if "half" in leaves:
            connection.shutdown(socket.SHUT_WR)
            time.sleep(0.3)
            assert engine.running
        if leaves == "resets":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        begin = time.monotonic()
        wait_until(lambda: not engine.running)
        assert time.monotonic() - begin < 2.0 and engine.aborted == [0]


CHUNKED = f"POST /v1/chat/completions HTTP/1.1\r\n{HEAD}transfer-encoding: chunked\r\n\r\n".encode()
ODD = {
    "one header of megabytes": (b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 2_000_000, 431),
    "many headers": (b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: a\r\n" * 200_000, 431),
    "a long target": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
    "chunks of one byte": (CHUNKED + b"1\r\n \r\n" * 16_000, 400),
    "a chunk without a size": (CHUNKED + b"zz\r\n", 400),
    "two lengths": (CHUNKED.replace(b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n") + b"0\r\n\r\n", 400),
    "lengths that differ": (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}", 400),
    "a negative length": (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
    "a coding that is unknown": (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "a NUL": (b"GET /health HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n", 400),
    "a target that is no address": (b"GET http://[/health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 400),
    "an absolute target": (b"GET http://a/health HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n", 200),
    "HEAD": (b"HEAD /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 200),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 404),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", 200),
    "a body that is not asked for": (
        b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 9999999\r\n\r\n",
        413,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_http_is_answered_within_a_second(idle_url, name):
    data, status = ODD[name]
    begin = time.monotonic()
    answer = exchange(idle_url, data, timeout=1.0)
    assert time.monotonic() - begin < 1.0
    assert int(answer.split()[1]) == status
    if status != 200:
        assert error_in(answer)["message"]
    assert (name == "HEAD") == answer.endswith(b"\r\n\r\n")
    assert seconds_of_health(idle_url) < 1.0


def test_an_absolute_target_names_the_host_that_is_judged(tokenizer):
    rules = Rules(hosts=frozenset({"localhost"}))
    with serving(scripted(tokenizer, ScriptedEngine(tokenizer, [])), rules) as url:
        for host, header, status in (("localhost", "evil.example", b"200"), ("evil.example", "localhost", b"403")):
            request = f"GET http://{host}/health HTTP/1.1\r\nhost: {header}\r\nconnection: close\r\n\r\n"
            assert exchange(url, request.encode()).split()[1] == status


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_no_spelling_of_a_request_gets_around_the_key(tokenizer, method):
    rules = make_rules("127.0.0.1", None, {"PUNA_API_KEY": KEY})
    with serving(scripted(tokenizer, ScriptedEngine(tokenizer, [])), rules) as url:
        targets = [
            "http://a/v1/models",
            "HTTP://a/v1/models",
            "/v1/models?a",
            "//v1/models",
            "/health/../v1/models",
            "*",
        ]
        for target in [*targets, "http://a/health/../v1/models", "http://health/v1/models", "/%76%31/models"]:
            head = f"{method} {target} HTTP/1.1\r\nhost: /health\r\nconnection: close\r\n"
            assert exchange(url, f"{head}\r\n".encode()).split()[1] == b"401", target
            with_key = exchange(url, f"{head}authorization: Bearer {KEY}\r\n\r\n".encode())
            assert with_key.split()[1] in (b"200", b"404", b"405"), target


def test_a_line_of_the_log_is_written_only_so_often(caplog):
    now = [0.0]
    limit = LogLimit(lines_per_second=3, clock=lambda: now[0])
    logger = logging.getLogger("puna.tests.log")
    logger.addFilter(limit)
    with caplog.at_level(logging.INFO):
        for number in range(1237):
            logger.warning("Invalid request %d from %s", number, "x" * 9000)
        logger.warning("another")
        now[0] = 1.5
        logger.warning("Invalid request %d from %s", 1, "again")
    messages = [(record.name, record.getMessage()) for record in caplog.records]
    # Limits that servers of other tests have left on other loggers speak up as well.
    lines = [message for name, message in messages if name == logger.name or logger.name in message]
    assert [line[:17] for line in lines[:3]] == ["Invalid request 0", "Invalid request 1", "Invalid request 2"]
    assert max(map(len, lines)) < 600 and lines[3] == "another" and lines[5] == "Invalid request 1 from again"
    assert lines[4].startswith("... 1,234 more lines like this: puna.tests.log Invalid request")


def test_addresses_of_one_subscriber_count_as_one():
    assert address_key("10.0.0.7") == address_key("::ffff:10.0.0.7") == "10.0.0.7"
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff:2%eth0") != address_key("2001:db8:0:1::1")
