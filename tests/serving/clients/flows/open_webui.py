"""Open WebUI's back end in front of a server: the model list, a chat, streams, settings, a title.

Starts Open WebUI with an empty folder of data, which takes a minute.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "When do you open?"}]}
PARAMS = {
    "temperature": 0.2,
    "top_k": 40,
    "min_p": 0.0,
    "repeat_penalty": 1.1,
    "seed": 7,
    "max_tokens": 16,
    "stop": ["END"],
}
TITLE = {
    "model": "tiny",
    "messages": [*CHAT["messages"], {"role": "assistant", "content": "At nine."}],
    "chat_id": "c-1",
}


def send(url: str, body: object = None, token: str = "") -> bytes:
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def main(url: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "DATA_DIR": folder,
            "WEBUI_AUTH": "False",
            "OPENAI_API_BASE_URL": url,
            "OPENAI_API_KEY": "none",
            "ENABLE_OLLAMA_API": "False",
            "RAG_EMBEDDING_ENGINE": "openai",
            "OFFLINE_MODE": "True",
            "HF_HUB_OFFLINE": "1",
            "WEBUI_SECRET_KEY": "s" * 32,
        }
        command = [
            str(Path(sys.executable).with_name("open-webui")),
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            for _ in range(240):
                try:
                    send(f"{here}/health")
                    break
                except OSError:
                    time.sleep(0.5)
            token = json.loads(send(f"{here}/api/v1/auths/signin", {"email": "", "password": ""}))["token"]
            send(f"{here}/api/models", token=token)
            send(f"{here}/api/chat/completions", CHAT | {"stream": False}, token)
            send(f"{here}/api/chat/completions", CHAT | {"stream": True, "params": PARAMS}, token)
            send(
                f"{here}/api/chat/completions",
                CHAT | {"stream": True, "stream_options": {"include_usage": True}},
                token,
            )
            send(f"{here}/api/v1/tasks/title/completions", TITLE, token)
        except Exception:
            print(Path(folder, "log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            server.terminate()
            server.wait(30)


main(sys.argv[1])
