#!/bin/sh
# Surprise: a message that OpenAI's Python client returns from `chat.completions.parse` or `.stream` is not a message
#   that the API's reference lets a client send: appended to the conversation as the client's documentation shows, the
#   message carries `parsed`, and each tool call carries `parsed_arguments` and, after a stream, `index`.
# Why it matters here: a server that refuses unknown fields by name, as `puna serve` did, refuses the second turn of
#   every agent that is written with these two methods. The fields repeat what `content` and `arguments` say, so a
#   server can leave them out. `puna serve` does (tests/serving/clients/recorded/openai_python.json).
# Source: openai 3.57.0, src/openai/types/chat/parsed_chat_completion.py and parsed_function_tool_call.py;
#   https://platform.openai.com/docs/api-reference/chat/create (messages, tool_calls).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 pydantic==2.14.4
timeout 60 "$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai
from pydantic import BaseModel

CALL = {"id": "call_1", "type": "function", "function": {"name": "FindOrder", "arguments": '{"number": "4711"}'}}
HEAD = {"id": "1", "created": 0, "model": "m"}
bodies = []


class Stub(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        bodies.append(body)
        if body.get("stream"):
            deltas = ({"role": "assistant", "tool_calls": [{"index": 0, **CALL}]}, {})
            choices = [{"index": 0, "delta": delta, "finish_reason": None if delta else "tool_calls"} for delta in deltas]
            chunks = [{**HEAD, "object": "chat.completion.chunk", "choices": [choice]} for choice in choices]
            content = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        else:
            message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
            choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
            content = json.dumps({**HEAD, "object": "chat.completion", "choices": choices})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if body.get("stream") else "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_):
        pass


class FindOrder(BaseModel):
    number: str


server = HTTPServer(("127.0.0.1", 0), Stub)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
asked = {"model": "m", "messages": [{"role": "user", "content": "Order 4711?"}]}
tools = [openai.pydantic_function_tool(FindOrder)]
parsed = client.chat.completions.parse(**asked, tools=tools).choices[0].message
with client.chat.completions.stream(**asked, tools=tools) as stream:
    streamed = stream.get_final_completion().choices[0].message
seen = []
for message in (parsed, streamed):
    result = {"role": "tool", "tool_call_id": "call_1", "content": "on its way"}
    client.chat.completions.create(model="m", messages=[*asked["messages"], message, result], tools=tools)
    sent = bodies[-1]["messages"][1]
    call = sent["tool_calls"][0]
    extra = sorted({"parsed"} & set(sent)), sorted({"index"} & set(call)), sorted({"parsed_arguments"} & set(call["function"]))
    seen.append(extra)
print(f"openai {openai.__version__}; after parse and after stream: {seen}")
expected = [(["parsed"], [], ["parsed_arguments"]), (["parsed"], ["index"], ["parsed_arguments"])]
sys.exit(0 if seen == expected else "the behaviour has changed")
PYTHON
