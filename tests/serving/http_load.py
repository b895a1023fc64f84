"""Many HTTP clients in one event loop: raw sockets, kept alive, so that the load costs little beside the server."""

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

KEYS = [f"{place:02d}" + "k" * 38 for place in range(10)]


@dataclass
class Outcome:
    """What came back: statuses, tokens and refusals by tenant, and what was neither an answer nor a refusal."""

    tokens: list[int]
    refused: list[int]
    statuses: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        return cls(**json.loads(text))

    @property
    def num_answers(self) -> int:
        return sum(self.statuses.values())

    @property
    def tokens_per_second(self) -> float:
        return sum(self.tokens) / self.seconds


class Connection:
    """One client's connection."""

    def __init__(self, port: int, key: str):
        self.port, self.key = port, key
        self.reader: asyncio.StreamReader | None = None

    async def post(self, body: dict) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return the status, the headers and the whole body."""
        if self.reader is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        self.writer.write(head.encode() + content)
        status_line, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        if "content-length" in headers:
            answer = await self.reader.readexactly(int(headers["content-length"]))
        else:
            answer = b""
            while size := int((await self.reader.readline()).strip(), 16):
                answer += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        if headers.get("connection") == "close":
            self.close()
        return int(status_line.split()[1]), headers, answer

    def close(self) -> None:
        if self.reader is not None:
            self.writer.close()
            self.reader = None


async def client(outcome: Outcome, port: int, tenant: int, body: dict, goes_on, patience: float) -> None:
    """Send one request after another; wait after a 503 as long as it says, but at most `patience` seconds."""
    connection = Connection(port, KEYS[tenant])
    while goes_on():
        try:
            status, headers, answer = await connection.post(body)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            outcome.broken.append(repr(error))
            connection.close()
            continue
        outcome.statuses[str(status)] += 1
        if status == 200 and body.get("stream"):
            text = answer.decode()
            if text.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in text:
                outcome.tokens[tenant] += body["max_tokens"]
            else:
                outcome.broken.append(text[-300:])
        elif status == 200:
            outcome.tokens[tenant] += json.loads(answer)["usage"]["completion_tokens"]
        elif status == 503:
            outcome.refused[tenant] += 1
            await asyncio.sleep(min(patience, float(headers["retry-after"])))
    connection.close()


def run_clients(
    port: int,
    clients: list[int],
    patience: float,
    seconds: float = 1e9,
    count: int = 1 << 60,
    is_streamed: bool = False,
    max_tokens: int = 16,
    n: int = 1,
) -> Outcome:
    """Let each key have so many clients, for some seconds or until `count` requests were sent in all."""
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": max_tokens, "stream": is_streamed, "n": n}
    outcome, unsent, started = Outcome([0] * len(clients), [0] * len(clients)), iter(range(count)), time.monotonic()

    def goes_on() -> bool:
        return time.monotonic() < started + seconds and next(unsent, None) is not None

    async def run() -> None:
        tenants = [tenant for tenant, number in enumerate(clients) for _ in range(number)]
        await asyncio.gather(*(client(outcome, port, tenant, body, goes_on, patience) for tenant in tenants))

    asyncio.run(run())
    outcome.seconds = time.monotonic() - started
    return outcome


if __name__ == "__main__":
    print(json.dumps(vars(run_clients(**json.loads(sys.argv[1])))))
