"""Run the clients of flows/ against the stub and write the shapes of their requests: recorded/NAME.json.

    python tests/serving/clients/record.py openai_python=/tmp/v/bin/python openai_node=node
    python tests/serving/clients/record.py --url http://127.0.0.1:8321/v1 openai_python=/tmp/v/bin/python

The program after `=` is an interpreter that has the client installed; for Node, run this in the folder of node_modules.
With `--url` the flows run against that server, which serves a model named "tiny", and nothing is recorded. Answers are
longer then: a small model needs more tokens for a call than the stub's.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stub import Recorder

HERE = Path(__file__).parent
MAX_TEXT = 80  # characters of a message; longer text is the client's own prose, and only its length is recorded
PACKAGES = {
    "langchain": "langchain-openai",
    "litellm": "litellm",
    "llama_index": "llama-index-llms-openai-like",
    "llm_command": "llm",
    "lm_eval": "lm_eval",
    "ogx_client": "ogx-client",
    "open_webui": "open-webui",
    "openai_agents": "openai-agents",
    "openai_node": "openai",
    "openai_python": "openai",
    "pydantic_ai": "pydantic-ai-slim",
    "vercel_ai": "ai",
}
FLOWS = {path.stem: path for path in sorted((HERE / "flows").iterdir())}


def version(name: str, program: str) -> str:
    """Return the package of a client and its version: "openai 3.57.0"."""
    package = PACKAGES[name]
    if FLOWS[name].suffix == ".mjs":
        manifest = json.loads(Path("node_modules", package, "package.json").read_text())
        return f"{package} {manifest['version']} (Node)"
    code = f"import importlib.metadata; print(importlib.metadata.version({package!r}))"
    return f"{package} {subprocess.check_output([program, '-P', '-c', code], text=True).strip()}"


def run_flow(name: str, program: str, url: str, **environment: str) -> bool:
    """Run one client's flow against `url`; print its error if it fails."""
    safe_path = ["-P"] if FLOWS[name].suffix == ".py" else []  # a flow may be named like the package it imports
    command = [program, *safe_path, str(FLOWS[name]), url]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    report = "ok" if done.returncode == 0 else done.stderr[-1500:] + done.stdout[-500:]
    print(f"{name}, {version(name, program)}: {report}")
    return done.returncode == 0


def record(name: str, program: str) -> bool:
    """Run one client's flow against a stub and write what it sent."""
    Recorder.recorded = []
    stub = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    is_whole = run_flow(name, program, f"http://127.0.0.1:{stub.server_address[1]}/v1")
    stub.shutdown()
    found = {"client": version(name, program), "requests": [shape(request) for request in Recorder.recorded]}
    (HERE / "recorded").mkdir(exist_ok=True)
    (HERE / "recorded" / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return is_whole


def shape(request: dict[str, Any]) -> dict[str, Any]:
    """Leave out the long texts of a request's messages."""
    for message in (request["body"] or {}).get("messages", []):
        content = message.get("content")
        if isinstance(content, str) and len(content) > MAX_TEXT:
            message["content"] = f"(a text of {len(content)} characters)"
    return request


if __name__ == "__main__":
    arguments, url = sys.argv[1:], ""
    if arguments[0] == "--url":
        _, url, *arguments = arguments
    clients = dict(argument.split("=", 1) for argument in arguments)
    results = [run_flow(*client, url, MAX_TOKENS="192") if url else record(*client) for client in clients.items()]
    sys.exit(not all(results))
