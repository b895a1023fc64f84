"""lm-evaluation-harness against a server: log-likelihoods and generation by token ids and by text, and by chat.

Needs a folder with a tokenizer that transformers can load, in the variable TOKENIZER.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
output_type: {kind}
{more}
"""
CHOICES = 'doc_to_choice: ["at nine", "at ten"]\nmetric_list: [{metric: acc}]'
UNTIL = 'generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}\nmetric_list: [{metric: exact_match}]'
GREEDY = {"confirm_run_unsafe_code": True, "bootstrap_iters": 0, "log_samples": False}


def main(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.json")
        data.write_text(json.dumps([{"question": "When do you open?", "answer": "at nine"}]))
        for name, kind, more in (("hours_choice", "multiple_choice", CHOICES), ("hours", "generate_until", UNTIL)):
            Path(folder, f"{name}.yaml").write_text(TASK.format(name=name, kind=kind, data=data, more=more))
        tasks = TaskManager(include_path=folder, include_defaults=False)
        ids = {
            "model": "tiny",
            "base_url": f"{url}/completions",
            "tokenizer": os.environ["TOKENIZER"],
            "num_concurrent": 1,
        }
        chat = {"model": "tiny", "base_url": f"{url}/chat/completions", "num_concurrent": 1}
        for model, arguments, names, is_chat in (
            ("local-completions", ids, ["hours_choice", "hours"], False),
            ("local-completions", ids | {"tokenized_requests": False}, ["hours_choice", "hours"], False),
            ("local-chat-completions", chat, ["hours"], True),
        ):
            lm_eval.simple_evaluate(
                model, model_args=arguments, tasks=names, task_manager=tasks, apply_chat_template=is_chat, **GREEDY
            )


main(sys.argv[1])
