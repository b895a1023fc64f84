"""Serve a checkpoint and call it with OpenAI's client: an answer, a stream, a JSON schema, log-probabilities.

    python examples/serve_and_call.py recipes/teacher [PORT]

The same calls work against a server that runs already, such as `puna serve build/student`.
"""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

PATIENCE_SECONDS = 60
SCHEMA = {
    "type": "object",
    "properties": {"open": {"type": "boolean"}},
    "required": ["open"],
    "additionalProperties": False,
}


@contextmanager
def served(checkpoint: str, port: int) -> Iterator[str]:
    """Run `puna serve` for the length of the block; yield the URL for clients."""
    puna = Path(sys.executable).parent / "puna"
    server = subprocess.Popen([puna, "serve", checkpoint, "--port", str(port), "--name", "mine"])
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/health")
        yield f"{address}/v1"
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str) -> None:
    """Return once the server answers requests."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url)
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"{url} did not answer within {PATIENCE_SECONDS} seconds")


def main(checkpoint: str, port: int = 8321) -> None:
    """Print four answers of a served checkpoint."""
    with served(checkpoint, port) as url:
        client = OpenAI(base_url=url, api_key="none")  # or a key of --api-key-file
        question = [{"role": "user", "content": "Hello! Are you open?"}]

        answer = client.chat.completions.create(model="mine", messages=question, max_tokens=24)
        print("answer:", answer.choices[0].message.content)

        stream = client.chat.completions.create(model="mine", messages=question, max_tokens=24, stream=True)
        print("stream:", "|".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))

        form = {"type": "json_schema", "json_schema": {"name": "hours", "schema": SCHEMA}}
        answer = client.chat.completions.create(model="mine", messages=question, max_tokens=24, response_format=form)
        print("schema:", json.loads(answer.choices[0].message.content or ""))

        answer = client.chat.completions.create(
            model="mine", messages=question, max_tokens=1, logprobs=True, top_logprobs=3
        )
        tokens = answer.choices[0].logprobs.content[0].top_logprobs
        print("first token:", {token.token: round(token.logprob, 2) for token in tokens})


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
