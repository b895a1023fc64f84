"""The examples run as their README says."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(*arguments: object, folder: Path = ROOT) -> str:
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_every_example_is_listed():
    listed = set(re.findall(r"\[(\w+\.\w+)\]\(\1\)", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}


@pytest.mark.tenth
def test_a_model_is_trained_from_python_and_the_second_call_reuses_it(tmp_path: Path):
    first = run(EXAMPLES / "train_in_python.py", tmp_path, 2)
    made = (tmp_path / "artifacts" / "sft" / "model.safetensors").stat().st_mtime_ns
    assert "answer: " in first and "lineage: sft <- synthesize" in first
    assert run(EXAMPLES / "train_in_python.py", tmp_path, 2) == first
    assert (tmp_path / "artifacts" / "sft" / "model.safetensors").stat().st_mtime_ns == made


@pytest.mark.tenth
def test_a_served_model_answers_openais_client():
    printed = run(EXAMPLES / "serve_and_call.py", "recipes/teacher", free_port())
    assert re.search(r"answer: \w", printed) and re.search(r"stream: .*\|", printed)
    assert re.search(r"schema: \{'open': (True|False)\}", printed) and "first token: {" in printed


def test_a_stage_of_ones_own_makes_an_artifact_once(tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "documents.jsonl").write_text(
        json.dumps({"id": "1", "text": "Write to jo.doe@shop.example, please."}) + "\n"
    )
    assert run(EXAMPLES / "write_a_stage.py", data, tmp_path / "out").endswith("done\n")
    assert run(EXAMPLES / "write_a_stage.py", data, tmp_path / "out").endswith("up to date\n")
    assert json.loads((tmp_path / "out" / "documents.jsonl").read_text())["text"] == "Write to [e-mail], please."
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["stage"] == "redact"


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )


@pytest.mark.tenth
def test_the_cells_of_the_notebook_run_in_order(tmp_path: Path):
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    program = tmp_path / "notebook.py"
    program.write_text("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    printed = run(program, folder=EXAMPLES)
    assert "learned: 'We open at 8:30.<|eot_id|>'" in printed
    assert "does not exist; expected a checkpoint directory" in printed
