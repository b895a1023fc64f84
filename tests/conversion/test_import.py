"""The import stage: any format becomes a checkpoint with its weights, licence and a receipt; the hub, offline."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch

from puna.evaluation.release.facts import base_of
from puna.formats.chat.template import PLAIN_TEMPLATE
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.checkpoint.gguf.writer import write_gguf
from puna.pipeline.artifacts.artifact import read_manifest, read_receipts
from puna.pipeline.artifacts.lineage import trace
from puna.pipeline.errors import CheckpointError, ConfigError, PunaError
from puna.serving.serve import open_served
from puna.testing.endpoint import listening
from puna.testing.tiny_checkpoint import logits_of, save, save_quantized

AGREEMENT = "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date: July 23, 2024\n"


def model_at(path: Path) -> Path:
    path.mkdir(parents=True)
    save(path)
    (path / "LICENSE").write_text(AGREEMENT)
    (path / "USE_POLICY.md").write_text("Be good.\n")
    return path


def test_a_directory_comes_in_with_its_weights_its_licence_and_a_receipt(
    tmp_path: Path, perform_stage: Callable[..., bool]
):
    source = model_at(tmp_path / "theirs")
    (source / "modeling.py").write_text("raise SystemExit")
    perform_stage("import", tmp_path / "ours", source=str(source))
    ours = tmp_path / "ours"
    assert torch.equal(logits_of(Checkpoint.open(ours).load()), logits_of(Checkpoint.open(source).load()))
    tokens, receipt = read_receipts(ours)
    assert tokens.claim == "tokenizer_kept" and tokens.held
    assert receipt.claim == "weights_kept" and receipt.value == 0 and receipt.held
    assert read_manifest(ours).licences == ["llama3.1"]
    assert (ours / "LICENSE").read_text() == AGREEMENT and (ours / "USE_POLICY.md").exists()
    assert not (ours / "modeling.py").exists()
    assert json.loads((ours / "origin.json").read_text())["format"] == "Hugging Face"


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_another_dtype_says_how_far_weights_moved(
    tmp_path: Path, perform_stage: Callable[..., bool], dtype: str, most: float
):
    perform_stage("import", tmp_path / "ours", source=str(model_at(tmp_path / "theirs")), dtype=dtype)
    _, receipt = read_receipts(tmp_path / "ours")
    assert 0 < receipt.value <= most and receipt.held
    assert Checkpoint.open(tmp_path / "ours").load().norm.weight.dtype == getattr(torch, dtype)


def test_a_gguf_file_comes_in(tmp_path: Path, perform_stage: Callable[..., bool]):
    source = Checkpoint.open(model_at(tmp_path / "theirs")).source()
    path = tmp_path / "files" / "model.gguf"
    path.parent.mkdir()
    write_gguf(path, source, kind="Q8_0", name="model", template=PLAIN_TEMPLATE)
    perform_stage("import", tmp_path / "ours", source=str(path), licence="llama3.1", dtype="float32")
    assert read_manifest(tmp_path / "ours").licences == ["llama3.1"]
    error = logits_of(Checkpoint.open(tmp_path / "ours").load()) - logits_of(
        Checkpoint.open(tmp_path / "theirs").load()
    )
    assert 0 < error.std() < 0.1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(
    tmp_path: Path, perform_stage: Callable[..., bool], value: float
):
    source = model_at(tmp_path / "theirs")
    model = Checkpoint.open(source).load()
    with torch.no_grad():
        model.norm.weight[3] = value
    for file in source.glob("*.safetensors"):
        file.unlink()
    for name in ("config.json", "generation_config.json"):
        (source / name).unlink()
    from puna.formats.checkpoint.checkpoint import save_checkpoint

    save_checkpoint(source, model, Checkpoint.open(model_at(tmp_path / "other")).tokenizer())
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight holds NaN or infinity"):
        perform_stage("import", tmp_path / "ours", source=str(source))
    assert not (tmp_path / "ours").exists()


def test_what_is_no_model_is_refused_with_what_was_expected(tmp_path: Path, perform_stage: Callable[..., bool]):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no model.*params\.json"):
        perform_stage("import", tmp_path / "ours", source=str(tmp_path / "empty"))
    (tmp_path / "empty" / "model.gguf").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"Name the file: .*model\.gguf"):
        perform_stage("import", tmp_path / "ours", source=str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="exactly one of source and hub"):
        perform_stage("import", tmp_path / "ours")


def test_an_adapter_needs_a_base_of_floats(tmp_path: Path, perform_stage: Callable[..., bool]):
    import peft
    import transformers

    base, rounded = model_at(tmp_path / "base"), tmp_path / "rounded"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"is an adapter.*--base"):
        perform_stage("import", tmp_path / "ours", source=str(tmp_path / "adapter"))
    rounded.mkdir()
    save_quantized(rounded)
    with pytest.raises(CheckpointError, match="rounded weights cannot hold"):
        perform_stage("import", tmp_path / "ours", source=str(tmp_path / "adapter"), base=str(rounded))
    perform_stage("import", tmp_path / "ours", source=str(tmp_path / "adapter"), base=str(base), licence="own")
    before, after = (logits_of(Checkpoint.open(path).load()) for path in (base, tmp_path / "ours"))
    assert (before - after).abs().max() > 0.01
    claims = {receipt.claim: receipt for receipt in read_receipts(tmp_path / "ours")}
    assert claims["largest_difference"].held and claims["largest_difference"].value < 1e-4
    assert read_manifest(tmp_path / "ours").licences == ["llama3.1", "own"]
    found = base_of(trace(tmp_path / "ours"))
    assert found and Path(found["path"]).name == "base", "the adapter is not what the model is made from"


# The hub


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as a download asks for, over the files of one folder."""

    def __init__(self, *arguments: object, folder: Path, asked: list[str]):
        self.folder, self.asked = folder, asked
        super().__init__(*arguments)  # pyright: ignore[reportArgumentType]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/acme/tiny/"):
            files = [{"rfilename": file.name, "size": file.stat().st_size} for file in sorted(self.folder.iterdir())]
            if "/tree/" in path:
                tree = [{"type": "file", "path": f["rfilename"], "size": f["size"], "oid": "0" * 40} for f in files]
                self.reply(json.dumps(tree).encode(), "application/json")
                return
            told = {"id": "acme/tiny", "modelId": "acme/tiny", "sha": COMMIT, "siblings": files, "tags": []}
            self.reply(json.dumps(told).encode(), "application/json")
            return
        file = self.folder / path.rsplit("/", 1)[-1]
        if not path.startswith("/acme/tiny/resolve/") or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if "/tiny/" not in path else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.reply(file.read_bytes(), "application/octet-stream", etag=f'"{file.name}"')

    def reply(self, body: bytes, kind: str, etag: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a model with a pickle and some code beside it; yield the address and what is asked of it."""
    folder = model_at(tmp_path / "repository")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    asked: list[str] = []
    with listening(partial(Hub, folder=folder, asked=asked)) as url:
        yield url, asked


def puna(home: Path, *arguments: str, endpoint: str = "http://127.0.0.1:9") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from puna.cli import main; main()", *arguments]
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_licence_of_one_that_names_it_only_in_its_readme_comes_along(tmp_path: Path, hub: tuple[str, list[str]]):
    (tmp_path / "repository" / "LICENSE").unlink()
    (tmp_path / "repository" / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    done = puna(tmp_path / "home", "import", "--hub", "acme/tiny", "--out", str(tmp_path / "ours"), endpoint=hub[0])
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "ours").licences == ["llama3.1"]


def test_a_models_own_stop_and_its_greedy_decoding_survive(tmp_path: Path, perform_stage: Callable[..., bool]):
    path = model_at(tmp_path / "theirs")
    checkpoint = Checkpoint.open(path)
    own = checkpoint.tokenizer().special("reserved_special_token_2")
    settings = {"do_sample": False, "eos_token_id": [own, checkpoint.tokenizer().special("eot_id")]}
    (path / "generation_config.json").write_text(json.dumps(settings))
    perform_stage("import", tmp_path / "ours", source=str(path))
    ours = Checkpoint.open(tmp_path / "ours")
    assert set(ours.stop_ids) == {*ours.tokenizer().stop_ids, own}
    written = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert written["do_sample"] is False and not {"temperature", "top_p"} & written.keys()
    served = open_served(tmp_path / "ours")
    assert served.defaults.temperature == 0 and own in served.stop_ids
    write_gguf(tmp_path / "m.gguf", ours.source(), kind="F32", name="m", template=PLAIN_TEMPLATE)
    perform_stage("import", tmp_path / "back", source=str(tmp_path / "m.gguf"))
    back = Checkpoint.open(tmp_path / "back").source()
    assert own in back.stop_ids and back.sampling == {"do_sample": False}


def test_the_licence_around_metas_own_folder_comes_along(tmp_path: Path, perform_stage: Callable[..., bool]):
    path = model_at(tmp_path / "repository" / "original")
    for name in ("LICENSE", "USE_POLICY.md"):
        (path / name).unlink(missing_ok=True)
        (path.parent / name).write_text(AGREEMENT)
    perform_stage("import", tmp_path / "ours", source=str(path))
    assert read_manifest(tmp_path / "ours").licences == ["llama3.1"]
    assert (tmp_path / "ours" / "LICENSE").is_file() and (tmp_path / "ours" / "USE_POLICY.md").is_file()


def test_sampling_that_transformers_left_unset_is_no_fault(tmp_path: Path, perform_stage: Callable[..., bool]):
    path = model_at(tmp_path / "theirs")
    settings = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps(settings | {"temperature": None, "top_p": 0.8}))
    perform_stage("import", tmp_path / "ours", source=str(path))
    assert json.loads((tmp_path / "ours" / "generation_config.json").read_text())["top_p"] == 0.8


def test_a_model_is_fetched_once_by_name_without_pickles_and_code(tmp_path: Path, hub: tuple[str, list[str]]):
    endpoint, asked = hub
    out = tmp_path / "ours"
    done = puna(tmp_path / "home", "import", "--hub", "acme/tiny", "--out", str(out), endpoint=endpoint)
    assert done.returncode == 0, done.stderr
    assert not [path for path in asked if path.endswith((".py", ".bin"))]
    assert json.loads((out / "origin.json").read_text())["commit"] == COMMIT
    assert read_manifest(out).licences == ["llama3.1"]
    expected = logits_of(Checkpoint.open(tmp_path / "repository").load())
    assert torch.equal(logits_of(Checkpoint.open(out).load()), expected)
    # With --offline the cache is enough, and nothing is asked.
    asked.clear()
    again = puna(tmp_path / "home", "import", "--hub", "acme/tiny", "--out", str(tmp_path / "again"), "--offline")
    assert again.returncode == 0, again.stderr
    assert not asked


def test_offline_a_model_that_is_not_there_is_an_error_that_says_so(tmp_path: Path):
    done = puna(tmp_path / "home", "import", "--hub", "acme/tiny", "--out", str(tmp_path / "ours"), "--offline")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "acme/tiny at 'main' is not on this machine. Fetch it once without --offline" in done.stderr


def test_a_name_that_the_hub_does_not_know_is_an_error(tmp_path: Path, hub: tuple[str, list[str]]):
    out = str(tmp_path / "ours")
    done = puna(tmp_path / "home", "import", "--hub", "acme/other", "--out", out, endpoint=hub[0])
    assert done.returncode == 1 and "Traceback" not in done.stderr and "acme/other" in done.stderr


def test_offline_no_connection_beyond_the_machine_can_be_made():
    script = (
        "import socket\n"
        "from puna.pipeline import offline\n"
        "offline.enforce()\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).close()\n"
        "far = ('192.0.2.1', 80)\n"
        "datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "datagrams.sendto(b'x', server.getsockname())\n"
        "datagrams.sendmsg([b'x'], [], 0, server.getsockname())\n"
        "for ask in (\n"
        "    lambda: socket.create_connection(far, 1),\n"
        "    lambda: datagrams.sendto(b'x', far),\n"
        "    lambda: datagrams.sendmsg([b'x'], [], 0, far),\n"
        "    lambda: socket.getaddrinfo('a.test', 80),\n"
        "    lambda: socket.gethostbyname('a.test'),\n"
        "    lambda: socket.gethostbyaddr('192.0.2.1'),\n"
        "    lambda: socket.getnameinfo(far, 0),\n"
        "):\n"
        "    try: ask()\n"
        "    except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ConfigError"] * 7


@pytest.mark.parametrize("name", ["../x", "a/b/c", "", "a b"])
def test_a_hub_name_is_a_name(name: str):
    from puna.conversion.exchange.hub import download

    with pytest.raises(PunaError, match="OWNER/NAME"):
        download(name)


@pytest.mark.parametrize(
    ("licence", "said"), [("", "licence: unknown"), ("llama31", "'llama31' is unknown"), ("llama3.1", "")]
)
def test_terms_that_a_release_would_stop_at_are_said_at_once(
    tmp_path: Path, perform_stage: Callable[..., bool], licence: str, said: str
):
    source = model_at(tmp_path / "theirs")
    (source / "LICENSE").unlink()
    perform_stage("import", tmp_path / "ours", source=str(source), licence=licence)
    log = (tmp_path / ".runs" / "ours" / "log.txt").read_text()
    assert said in log if said else "licence" not in log
