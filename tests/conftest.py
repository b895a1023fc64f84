"""Fixtures that several test files share: a tiny tokenizer, dataset and checkpoint, and a way to run one stage."""

import json
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
    path = tmp_path_factory.mktemp("dataset")
    documents = [
        {"text": f"Store {n} opens at {n + 5} and closes at {n + 12}. " * (n % 3 + 1), "id": f"page {n}"}
        for n in range(6)
    ]
    (path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (path / "conversations.jsonl").write_text("".join(json.dumps(ask_for_order(n)) + "\n" for n in range(12)))
    return path


def ask_for_order(n: int) -> dict[str, Any]:
    order = str(40_000 + 37 * n)
    call = {"type": "function", "function": {"name": "find_order", "arguments": {"order": order}}}
    return {
        "id": f"order {n}",
        "environment": "ipython",
        "messages": [
            {"role": "user", "content": f"Where is my order {order}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": json.dumps({"order": order, "parcel": str(60_000 + n)})},
            {"role": "assistant", "content": f"Your order {order} is parcel {60_000 + n}."},
        ],
    }


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
    from rich.console import Console

    from puna.pipeline.config import parse_config
    from puna.pipeline.execution.executor import perform
    from puna.pipeline.execution.recipe import config_class
    from puna.pipeline.stages import STAGES

    def perform_one(verb: str, out: Path, *, ignore_receipts: bool = False, **settings: Any) -> bool:
        stage = next(stage for stage in STAGES if stage.verb == verb)
        config = parse_config(config_class(stage), settings, where=verb)
        return perform(stage, config, out, Console(quiet=True), ignore_receipts=ignore_receipts)

    return perform_one


@pytest.fixture(scope="session")
def training(tokenizer_path: Path, dataset_path: Path) -> dict[str, Any]:
    """Settings of a training stage that takes a moment: 6 steps of a model with one layer, in float32."""
    return {
        "data": [str(dataset_path)],
        "size": WIDTHS,
        "tokenizer": str(tokenizer_path),
        "max_length": 256,
        "batch_tokens": 512,
        "steps": 6,
        "precision": "float32",
        "optim": {"lr": 0.01, "warmup_steps": 2},
    }


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plot at the end of each training, which takes longer than the training."""
    monkeypatch.setattr("puna.training.reports.plot.plot_losses", lambda *_, **__: None)


@pytest.fixture
def copy_of_dataset(dataset_path: Path, tmp_path: Path) -> Path:
    """The dataset in a folder that a test may change."""
    return Path(shutil.copytree(dataset_path, tmp_path / "data"))
