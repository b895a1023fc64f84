#!/bin/sh
# Surprise: openai's client takes a streamed chat answer as complete when the body ends without `data: [DONE]` and
#   without a finish_reason, even in the middle of an event: the loop ends normally, and the half event is dropped.
#   Only a connection that breaks (no last HTTP chunk) raises.
# Why it matters here: a proxy that reaches its time limit, or a worker that is stopped, ends the body properly. Answers
#   and labels collected that way are cut in two and look whole; a grade then blames the model. A caller must check that
#   the last choice has a finish_reason. Puna's chat page says that the connection ended; `puna answer` and `puna label`
#   ask for whole answers.
# Source: openai/_streaming.py (`if sse.data.startswith("[DONE]"): break`; the end of the bytes ends the loop as well);
#   https://html.spec.whatwg.org/multipage/server-sent-events.html (an incomplete event at the end is discarded).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.54.0
timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import json, sys, threading, openai
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}

def event(text):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return b"data: " + json.dumps(CHUNK | {"choices": [choice]}).encode() + b"\n\n"

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        model = json.loads(self.rfile.read(int(self.headers["content-length"])))["model"]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        ends = {"between events": b"", "within an event": event("1954.")[:60], "broken": b""}
        for body in (event("It opened in "), ends[model]):
            if body:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
        if model != "broken":
            self.wfile.write(b"0\r\n\r\n")  # a complete HTTP answer
        self.close_connection = True

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", timeout=10)
print("openai", openai.__version__)
found = {}
for model in ("between events", "within an event", "broken"):
    text, reason = "", None
    try:
        messages = [{"role": "user", "content": "When did it open?"}]
        for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
            text, reason = text + chunk.choices[0].delta.content, chunk.choices[0].finish_reason
        found[model] = "no error"
    except openai.OpenAIError as error:
        found[model] = type(error).__name__
    print(f"{model:16} text {text!r}, finish_reason {reason}, {found[model]}")
holds = found["between events"] == found["within an event"] == "no error" and found["broken"] != "no error"
print("the behaviour holds" if holds else "the behaviour is gone")
sys.exit(not holds)
PYTHON
