#!/bin/sh
# Surprise: with continue_final_message transformers 5.23 cuts the rendered chat at the end of the last message and then
#   strips the space before the cut. If that message is empty or blank, the blank line of its header goes too: the
#   prompt ends in <|end_header_id|>, where Llama's format, and the prompt without a message, have \n\n after it.
# Why it matters here: programs that "prefill" with a text that may be empty ask a Llama with a prompt that it was never
#   trained on, and get other answers than without the field. Servers that render with transformers inherit the prompt.
#   Puna's ChatFormat.prompt_to_continue keeps the blank line: an empty message is continued as an open header is.
# Source: run by us; render_jinja_template in transformers/utils/chat_template_utils.py
#   (`rendered_chat[:tag_loc].rstrip()`).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 jinja2==3.1.6
timeout 120 "$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys
from importlib.metadata import version

from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATE = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

def render(*contents, **options):
    roles = ("user", "assistant")
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents)]
    return render_jinja_template(conversations=[messages], chat_template=TEMPLATE, **options)[0][0]

print("transformers", version("transformers"))
fresh = render("Hi", add_generation_prompt=True)
print(f"no message {fresh[-20:]!r}")
empty = {text: render("Hi", text, continue_final_message=True) for text in ("", " \n", "At ")}
for text, prompt in empty.items():
    print(f"{text!r:10} {prompt[-20:]!r}")
holds = all(fresh == empty[text] + "\n\n" for text in ("", " \n")) and empty["At "] == fresh + "At"
print("the behaviour holds" if holds else "the behaviour is gone")
sys.exit(not holds)
PYTHON
