"""Streaming HTTP clients against `puna serve` -> tokens a second, and beside another version of Puna in the same run.

    python benchmarks/serve.py build/bench/1b-int4
    python benchmarks/serve.py build/bench/1b-int4 --against ../before/src     # both, in turns; prints the ratio

The clients read events and parse nothing. The servers run one after the other, each alone on the machine.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "from puna.cli import main; main()", "serve"]
PROMPT = "The shop opens at nine and closes at six. "


async def stream(port: int, body: bytes) -> int:
    """Send a request and count the events of its stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    writer.write(b"POST /v1/completions HTTP/1.1\r\n" + head.encode() + body)
    answer = await reader.read(-1)
    writer.close()
    assert b" 200 " in answer[:20] and b"[DONE]" in answer, answer[-300:]
    return answer.count(b"data: {")


def measure(source: Path, checkpoint: Path, num_clients: int, num_tokens: int) -> float:
    """Start a server of this source, let the clients stream at once, and return their tokens a second together."""
    environment = os.environ | {"PYTHONPATH": str(source)}
    command = [*COMMAND, str(checkpoint), "--port", "0", "--name", "it"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, text=True, env=environment) as server:
        try:
            assert server.stderr
            log = ""
            while not (found := re.search(r"running on http://[^:]+:(\d+)", log)):
                log += (line := server.stderr.readline())
                assert line, log
            port = int(found[1])
            asked = {"model": "it", "prompt": PROMPT, "temperature": 1.0, "seed": 1, "stream": True}
            # Nothing but letters and blanks may come: no answer ends early.
            asked["response_format"] = {"type": "grammar", "syntax": "regex", "definition": "[a-z ]{1,100000}"}

            async def together(count: int) -> int:
                body = json.dumps(asked | {"max_tokens": count}).encode()
                return sum(await asyncio.gather(*(stream(port, body) for _ in range(num_clients))))

            asyncio.run(together(8))
            started = time.monotonic()
            num_events = asyncio.run(together(num_tokens))
            assert num_events >= num_clients
            return num_clients * num_tokens / (time.monotonic() - started)
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--against", type=Path, help="the src directory of another version")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sources = [Path(__file__).parents[1] / "src", *([options.against] if options.against else [])]
    rates: dict[Path, list[float]] = {source: [] for source in sources}
    for _ in range(options.rounds):
        for source in sources:
            rates[source].append(measure(source, options.checkpoint, options.clients, options.tokens))
            print(f"{source}: {rates[source][-1]:.1f} tokens/s", flush=True)
    medians = [statistics.median(rates[source]) for source in sources]
    print(f"{options.clients} streams, median of {options.rounds}:", *(f"{median:.1f} tokens/s" for median in medians))
    if options.against:
        print(f"ratio: {medians[0] / medians[1]:.3f}")


if __name__ == "__main__":
    main()
