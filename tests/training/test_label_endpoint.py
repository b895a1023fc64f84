"""A teacher behind HTTP labels as it would in this process; what a server cannot do is refused in words."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna.data.dataset import Dataset
from puna.data.labels import LabelledRow, read_header
from puna.formats.tokenizer.train import train_tokenizer
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ConfigError, DataError, RequestError
from puna.serving.middleware.rules import Rules
from puna.serving.serve import make_server, open_served
from puna.testing.endpoint import ScriptedEndpoint, serving

Perform = Callable[..., bool]
Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.inference.completer.http.RetryPolicy.delay", lambda *_, **__: 0.0)


@pytest.fixture
def asked(checkpoint_path: Path, dataset_path: Path) -> Callable[..., Settings]:
    """Return a function from a URL to the settings that label the dataset there."""

    def settings(url: str, **more: Any) -> Settings:
        table = {"url": url, "model": "tiny", "tokenizer": str(checkpoint_path), "concurrency": 3, **more}
        return {"data": [str(dataset_path)], "max_length": 256, "top_k": 8, "shard_tokens": 300, "endpoint": table}

    return settings


@pytest.fixture
def local(perform_stage: Perform, asked: Callable[..., Settings], checkpoint_path: Path, tmp_path: Path) -> Path:
    """The same labels, made in this process."""
    settings = {name: value for name, value in asked("http://x").items() if name != "endpoint"}
    perform_stage("label", tmp_path / "local", **settings, teacher=str(checkpoint_path), precision="float32")
    return tmp_path / "local"


def rows_of(path: Path) -> list[LabelledRow]:
    rows = Dataset([path], ("labels",))
    return [rows[index] for index in range(len(rows))]  # type: ignore[misc]


def require_equal(path: Path, other: Path) -> None:
    for row, expected in zip(rows_of(path), rows_of(other), strict=True):
        assert np.array_equal(row.ids_T, expected.ids_T) and np.array_equal(row.mask_T, expected.mask_T)
        assert np.array_equal(row.top_ids_NK, expected.top_ids_NK)
        for name in ("top_NK", "tail_N", "chosen_N"):
            assert np.abs(getattr(row, name).astype(float) - getattr(expected, name)).max() < 0.01


def test_puna_serve_scores_texts_as_the_checkpoint_does(
    perform_stage: Perform, asked: Callable[..., Settings], local: Path, checkpoint_path: Path, tmp_path: Path
):
    served = open_served(checkpoint_path, name="tiny")
    server = make_server(served, Rules(), host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        perform_stage("label", tmp_path / "out", **asked(f"http://127.0.0.1:{port}/v1"))
    finally:
        server.should_exit = True
        thread.join()
    require_equal(tmp_path / "out", local)
    assert read_header(tmp_path / "out").teacher == f"tiny at http://127.0.0.1:{port}/v1"
    assert artifact.read_manifest(tmp_path / "out").licences == ["unknown"]


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo_ids", "echo"])
def test_each_way_of_scoring_gives_the_same_labels(
    perform_stage: Perform,
    asked: Callable[..., Settings],
    local: Path,
    checkpoint_path: Path,
    tmp_path: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("TEACHER_KEY", "s3cret")
    fake = ScriptedEndpoint(checkpoint_path, scores_by=way, key="s3cret", faults=["503", "drop", "429", "garbage"])
    with serving(fake) as url:
        perform_stage("label", tmp_path / "out", **asked(url, key_variable="TEACHER_KEY"), licence="MIT")
    assert artifact.read_manifest(tmp_path / "out").licences == ["mit"]
    assert not any(b"s3cret" in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    if way != "echo":
        require_equal(tmp_path / "out", local)
        return
    # Several ids may have one text, or a text that is no character: such entries are left to the tail.
    for row, expected in zip(rows_of(tmp_path / "out"), rows_of(local), strict=True):
        assert np.abs(row.chosen_N.astype(float) - expected.chosen_N).max() < 0.01
        known = [dict(zip(*pair, strict=True)) for pair in zip(expected.top_ids_NK, expected.top_NK, strict=True)]
        for ids, logprobs, label in zip(row.top_ids_NK, row.top_NK, known, strict=True):
            found = [(i, v) for i, v in zip(ids, logprobs, strict=True) if np.isfinite(v) and i in label]
            assert found and all(abs(float(v) - float(label[i])) < 0.01 for i, v in found)


def test_a_killed_run_asks_only_for_what_is_missing(
    perform_stage: Perform, asked: Callable[..., Settings], checkpoint_path: Path, tmp_path: Path
):
    fake = ScriptedEndpoint(checkpoint_path)
    with serving(fake) as url:
        perform_stage("label", tmp_path / "whole", **asked(url))
        num_requests, fake.num_answers = len(fake.bodies), len(fake.bodies) + 8
        with pytest.raises(RequestError, match=r"failed 8 times.*resumes where it stopped"):
            perform_stage("label", tmp_path / "out", **asked(url))
        fake.num_answers, fake.bodies = None, []
        perform_stage("label", tmp_path / "out", **asked(url))
    assert 0 < len(fake.bodies) < num_requests
    whole, out = (artifact.read_manifest(tmp_path / name) for name in ("whole", "out"))
    shards = [
        {n: e["sha256"] for n, e in each.files.items() if n.startswith(("labels-", "conv"))} for each in (whole, out)
    ]
    assert shards[0] == shards[1]


@pytest.mark.parametrize(
    ("fault", "more", "error", "message"),
    [
        ({"scores_by": "nothing"}, {}, ConfigError, "does not score texts .*no such route.*endpoint.answers = true"),
        ({"max_logprobs": 5}, {}, ConfigError, "greater than max allowed: 5.*Lower top_k"),
        ({"key": "s3cret"}, {}, ConfigError, "answers 401 bad key.*key_variable"),
        ({}, {"key_variable": "NOT_SET_ANYWHERE"}, ConfigError, "NOT_SET_ANYWHERE is not set"),
        ({"faults": ["503"] * 8}, {}, RequestError, "failed 8 times, at last: 503 too busy"),
        ({"faults": ["redirect"] * 9}, {}, ConfigError, "does not score texts .*307"),
    ],
)
def test_what_a_server_does_not_do_is_said(
    perform_stage: Perform,
    asked: Callable[..., Settings],
    checkpoint_path: Path,
    tmp_path: Path,
    fault: Settings,
    more: Settings,
    error: type[Exception],
    message: str,
):
    with serving(ScriptedEndpoint(checkpoint_path, **fault)) as url, pytest.raises(error, match=message):
        perform_stage("label", tmp_path / "out", **asked(url, **more))


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = "Quite different words, chosen by nobody in particular, give other pairs of letters to be merged first. "
    path = tmp_path_factory.mktemp("other")
    train_tokenizer([text * 9], vocab_size=560, split_digits=True).save(path)
    return path


def test_a_server_with_another_tokenizer_is_refused(
    perform_stage: Perform,
    asked: Callable[..., Settings],
    checkpoint_path: Path,
    other_tokenizer: Path,
    tmp_path: Path,
):
    for answers, message in ((False, "tiny has another tokenizer"), (True, "in tokens that are not this tokenizer's")):
        fake = ScriptedEndpoint(
            checkpoint_path, answer="Where is my order 48151? The parcel is on its way; we open at nine."
        )
        with serving(fake) as url, pytest.raises(DataError, match=message):
            settings = asked(url, tokenizer=str(other_tokenizer), answers=answers)
            perform_stage("label", tmp_path / "out", **settings)


def test_answers_of_a_server_are_labelled_token_by_token(
    perform_stage: Perform,
    asked: Callable[..., Settings],
    training: Settings,
    checkpoint_path: Path,
    tmp_path: Path,
    no_picture: None,
):
    fake = ScriptedEndpoint(checkpoint_path, scores_by="nothing")
    with serving(fake) as url:
        perform_stage("label", tmp_path / "out", **asked(url, answers=True))
    texts, rows = Dataset([tmp_path / "out"], ("conversations",)), rows_of(tmp_path / "out")
    tokenizer = fake.tokenizer
    for index, row in enumerate(rows):
        conversation = texts[index]
        assert conversation.messages[-1].content == fake.answer  # type: ignore[union-attr]
        told = row.ids_T[row.mask_T].tolist()
        assert told == [*tokenizer.encode(fake.answer), tokenizer.special("eot_id")]
        # The end is certain; each other label is the fake's own.
        assert row.top_NK[-1, 0] == 0 and np.isinf(row.top_NK[-1, 1:]).all()
        assert np.isfinite(row.top_NK[:-1]).all()
    settings = {name: value for name, value in training.items() if name != "data"}
    perform_stage("distill", tmp_path / "student", **{**settings, "steps": 1}, labels=str(tmp_path / "out"))


def test_answers_that_are_cut_off_are_left_out(
    perform_stage: Perform, asked: Callable[..., Settings], checkpoint_path: Path, tmp_path: Path
):
    fake = ScriptedEndpoint(checkpoint_path, finish_reason="length")
    with serving(fake) as url, pytest.raises(DataError, match="Left out: the answer ended by 'length'"):
        perform_stage("label", tmp_path / "out", **asked(url, answers=True))
