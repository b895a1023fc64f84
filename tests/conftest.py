"""Fixtures that several test files share: a tiny tokenizer, dataset and checkpoint, and a way to run one stage."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# NOTE: before torch is imported anywhere: tests share the machine's cores with one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

WIDTHS: dict[str, Any] = {"dim": 16, "hidden_dim": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer of 600 ids that spells digits one by one."""
    from puna.formats.tokenizer.train import train_tokenizer

    text = (
        "Where is my order 48151? The parcel 62342 is on its way; we open at nine and close at six. Return it, please."
    )
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([text * 4], vocab_size=560, split_digits=True).save(path)
    return path


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 6 documents and 12 conversations, each of the latter with a tool call."""
    from puna.testing.dataset import write_dataset

    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """A directory with a checkpoint of one layer, its weights random, in float32."""
    from puna.formats.checkpoint.checkpoint import save_checkpoint
    from puna.formats.tokenizer.tokenizer import Tokenizer
    from puna.model.config import LlamaConfig
    from puna.model.llama import Llama

    tokenizer = Tokenizer.load(tokenizer_path)
    config = LlamaConfig(**WIDTHS, head_dim=8, vocab_size=tokenizer.vocab_size, max_context=256, tie_embeddings=True)
    model = Llama(config)
    model.initialize(seed=0)
    path = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(path, model, tokenizer)
    return path


@pytest.fixture(scope="session")
def perform_stage() -> Callable[..., bool]:
    """Return a function that makes one artifact as the command line does: perform_stage("sft", out, **settings)."""
    from puna.pipeline.artifacts.artifact import read_manifest
    from puna.pipeline.stages import STAGES
    from puna.testing.stage import perform_stage

    def perform_one(verb: str, out: Path, **settings: Any) -> bool:
        is_done = perform_stage(verb, out, **settings)
        stage, manifest = next(stage for stage in STAGES if stage.verb == verb), read_manifest(out)
        assert manifest.kind in stage.writes
        assert {entry["kind"] for entry in manifest.inputs.values()} <= set(stage.reads)
        return is_done

    return perform_one


@pytest.fixture(scope="session")
def training(tokenizer_path: Path, dataset_path: Path) -> dict[str, Any]:
    """Settings of a training stage that takes a moment: 6 steps of a model with one layer, in float32."""
    return {
        "data": [str(dataset_path)],
        "size": WIDTHS,
        "tokenizer": str(tokenizer_path),
        "context": 256,
        "batch_tokens": 512,
        "steps": 6,
        "precision": "float32",
        "optim": {"lr": 0.01, "warmup_steps": 2},
    }


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plot at the end of each training, which takes longer than the training."""
    monkeypatch.setattr("puna.training.loop.loop.plot_losses", lambda *_, **__: None)


@pytest.fixture
def copy_of_dataset(dataset_path: Path, tmp_path: Path) -> Path:
    """The dataset in a folder that a test may change."""
    return Path(shutil.copytree(dataset_path, tmp_path / "data"))
