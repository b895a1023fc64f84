#!/bin/sh
# Surprise: LlamaIndex's `OpenAILike.structured_predict` sends `tool_choice: "required"` with no `tools` at all unless the
#   model was declared with `is_function_calling_model=True`. OpenAI's API and vLLM answer such a request with 400.
# Why it matters here: `OpenAILike` is the class for servers like Puna's, and False is what it assumes. The call fails with
#   a message about tools, though the user asked for an object and never mentioned tools. docs/reference/compatibility.md says which
#   flag to set.
# Source: llama-index-core 0.14.25, llama_index/core/llms/llm.py (structured_predict) and
#   llama-index-llms-openai 0.8.3, llama_index/llms/openai/base.py (llm_kwargs["tool_choice"]).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check llama-index-core==0.14.25 \
    llama-index-llms-openai==0.8.3 llama-index-llms-openai-like==0.8.1
timeout 120 "$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

bodies = []


class Stub(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        bodies.append(body)
        message = {"role": "assistant", "content": '{"opens": "at nine"}'}
        if body.get("tools"):
            function = {"name": body["tools"][0]["function"]["name"], "arguments": '{"opens": "at nine"}'}
            message = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        answer = {"id": "1", "created": 0, "model": "m", "object": "chat.completion", "choices": choices}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Hours(BaseModel):
    opens: str


server = HTTPServer(("127.0.0.1", 0), Stub)
threading.Thread(target=server.serve_forever, daemon=True).start()
for declared in (False, True):
    model = OpenAILike(
        model="m",
        api_base=f"http://127.0.0.1:{server.server_port}/v1",
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=declared,
    )
    model.structured_predict(Hours, PromptTemplate("When do you open?"))
seen = [(body.get("tool_choice"), "tools" in body) for body in bodies]
print(f"llama-index-llms-openai-like 0.8.1: (tool_choice, has tools) undeclared and declared: {seen}")
sys.exit(0 if seen[0] == ("required", False) and seen[1][1] else "the behaviour has changed")
PYTHON
