"""The `llm` command: a prompt, a system prompt, streamed and not, a tool, a schema, a conversation that goes on."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = """
- model_id: tiny
  model_name: tiny
  api_base: "{url}"
  supports_tools: true
  supports_schema: true
- model_id: tiny-completion
  model_name: tiny
  api_base: "{url}"
  completion: true
"""


def main(url: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"LLM_USER_PATH": home, "OPENAI_API_KEY": "none"}
        Path(home, "extra-openai-models.yaml").write_text(MODELS.format(url=url))
        tool = "def find_order(number: str) -> str:\n    'Find an order by its number.'\n    return 'on its way'\n"
        for arguments in (
            ["Order 4711?", "-m", "tiny"],
            [
                "Order 4711?",
                "-m",
                "tiny",
                "-s",
                "Be brief.",
                "--no-stream",
                "-o",
                "max_tokens",
                "24",
                "-o",
                "temperature",
                "0",
            ],
            ["And the next?", "-c", "-o", "seed", "7", "-o", "top_p", "0.9", "-o", "json_object", "1"],
            ["Order 4711?", "-m", "tiny", "--functions", tool],
            ["Hours in JSON?", "-m", "tiny", "--schema", "opens string"],
            ["Order 4711?", "-m", "tiny", "-o", "logit_bias", '{"5": -10}', "-o", "presence_penalty", "0.5"],
            ["We open", "-m", "tiny-completion", "-o", "logprobs", "2"],
        ):
            command = [sys.executable, "-m", "llm", "prompt", *arguments]
            subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL)


main(sys.argv[1])
