"""Labels keep what a teacher foresees: equal to its own distribution, small, whole after a kill, a dataset too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from puna.data.dataset import Dataset
from puna.data.labels import LabelledRow, LabelRows, num_bits, pack_ids, read_header, unpack_ids, write_shard
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.model.compare import logits_of
from puna.pipeline.artifacts import artifact
from puna.pipeline.errors import ArtifactError, ConfigError, DataError
from puna.training.teacher.local import LocalTeacher
from puna.training.teacher.shards import ShardDirectory

pytestmark = pytest.mark.usefixtures("no_picture")

Perform = Callable[..., bool]
Settings = dict[str, Any]


@pytest.fixture
def labelling(checkpoint_path: Path, dataset_path: Path) -> Settings:
    """Settings that label the dataset in several shards, in float32."""
    return {
        "data": [str(dataset_path)],
        "teacher": str(checkpoint_path),
        "max_length": 256,
        "batch_tokens": 256,
        "shard_tokens": 300,
        "precision": "float32",
        "top_k": 8,
    }


def rows_of(path: Path) -> list[LabelledRow]:
    rows = Dataset([path], ("labels",))
    return [rows[index] for index in range(len(rows))]  # type: ignore[misc]


@pytest.mark.parametrize("bits", [1, 7, 8, 10, 17, 20, 25])
def test_packed_ids_come_back(bits: int):
    ids_NK = np.random.default_rng(0).integers(0, 1 << bits, (50, 13))
    packed_NP = pack_ids(ids_NK, bits)
    assert packed_NP.shape == (50, -(-13 * bits // 8))
    assert np.array_equal(unpack_ids(packed_NP, bits, 13), ids_NK)


def test_a_label_of_64_tokens_of_llama_takes_less_than_300_bytes(tmp_path: Path):
    assert num_bits(128_256) == 17
    source, count = np.random.default_rng(0), 2000
    row = LabelledRow(
        source.integers(0, 128_256, count + 1),
        np.ones(count + 1, bool),
        source.integers(0, 128_256, (count, 64)),
        source.normal(size=(count, 64)).astype(np.float16),
        source.normal(size=count).astype(np.float16),
        source.normal(size=count).astype(np.float16),
    )
    write_shard(tmp_path / "labels-0.safetensors", [row], vocab_size=128_256)
    assert (tmp_path / "labels-0.safetensors").stat().st_size < 275 * count
    (found,) = LabelRows(tmp_path / "labels-0.safetensors")
    for name in ("ids_T", "mask_T", "top_ids_NK", "top_NK", "tail_N", "chosen_N"):
        assert np.array_equal(getattr(found, name), getattr(row, name)), name


@pytest.mark.parametrize("every_token", [False, True])
def test_labels_are_the_teachers_own_distribution(
    perform_stage: Perform, labelling: Settings, checkpoint_path: Path, tmp_path: Path, every_token: bool
):
    perform_stage("label", tmp_path / "out", **labelling, every_token=every_token, temperature=2.0)
    model, header = Checkpoint.open(checkpoint_path).load(), read_header(tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert header.num_rows == len(rows) == (18 if every_token else 12)
    assert header.num_labels == sum(len(row.tail_N) for row in rows)
    for row in rows:
        log_TV = F.log_softmax(logits_of(model, row.ids_T.tolist(), checkpoint_path) / 2.0, dim=-1)
        places = np.flatnonzero(row.mask_T[1:])
        assert len(places) == len(row.tail_N)
        expected = log_TV[places].topk(8)
        assert torch.equal(expected.indices, torch.from_numpy(row.top_ids_NK).long())
        torch.testing.assert_close(torch.from_numpy(row.top_NK).float(), expected.values, rtol=1e-3, atol=1e-3)
        tail_N = torch.from_numpy(row.tail_N).float().exp()
        torch.testing.assert_close(tail_N, 1 - expected.values.exp().sum(-1), rtol=2e-3, atol=1e-3)
        chosen_N = log_TV[places, row.ids_T[places + 1]]
        torch.testing.assert_close(torch.from_numpy(row.chosen_N).float(), chosen_N, rtol=1e-3, atol=1e-3)


def test_the_kernels_label_as_torch_does(checkpoint_path: Path, dataset_path: Path, tmp_path: Path, perform_stage):
    settings = {"data": [str(dataset_path)], "teacher": str(checkpoint_path), "max_length": 256, "top_k": 560}
    for precision in ("float32", "bfloat16"):
        perform_stage("label", tmp_path / precision, **settings, precision=precision, every_token=True)
    for exact, rounded in zip(rows_of(tmp_path / "float32"), rows_of(tmp_path / "bfloat16"), strict=True):
        assert np.array_equal(exact.ids_T, rounded.ids_T)
        assert np.abs(exact.chosen_N.astype(float) - rounded.chosen_N).max() < 0.1


def test_a_row_longer_than_the_context_is_read_in_pieces_that_training_would_cut(
    perform_stage: Perform, labelling: Settings, checkpoint_path: Path, tmp_path: Path
):
    perform_stage("label", tmp_path / "out", **{**labelling, "max_length": 16, "every_token": True})
    model = Checkpoint.open(checkpoint_path).load()
    row = max(rows_of(tmp_path / "out"), key=lambda row: len(row.ids_T))
    assert len(row.ids_T) > 33 and len(row.tail_N) == len(row.ids_T) - 1
    ids = row.ids_T.tolist()
    for start in (0, 16, 32):
        log_TV = F.log_softmax(logits_of(model, ids[start : start + 16], checkpoint_path), dim=-1)
        expected = log_TV[torch.arange(len(log_TV)), torch.tensor(ids[start + 1 : start + 17])[: len(log_TV)]]
        found = torch.from_numpy(row.chosen_N[start : start + len(log_TV)]).float()
        torch.testing.assert_close(found, expected[: len(found)], rtol=1e-3, atol=1e-3)


def test_conversations_longer_than_the_context_are_left_out_and_counted(
    perform_stage: Perform, labelling: Settings, tmp_path: Path
):
    with pytest.raises(DataError, match=r"no labels.*Left out: longer than 16 tokens"):
        perform_stage("label", tmp_path / "out", **{**labelling, "max_length": 16})


def test_a_label_artifact_is_a_dataset(
    perform_stage: Perform, labelling: Settings, training: Settings, dataset_path: Path, tmp_path: Path
):
    perform_stage("label", tmp_path / "labels", **labelling)
    plain, labelled = Dataset([dataset_path], ("conversations",)), Dataset([tmp_path / "labels"])
    assert [plain[i] for i in range(len(plain))] == [labelled[i] for i in range(len(labelled))]
    assert perform_stage("sft", tmp_path / "out", **{**training, "data": [str(tmp_path / "labels")], "steps": 1})


def test_each_copy_has_identifiers_of_its_own(perform_stage: Perform, labelling: Settings, tmp_path: Path):
    perform_stage("label", tmp_path / "out", **labelling, copies=3, fresh_identifiers=True)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 36 and len({row.ids_T.tobytes() for row in rows}) == 36
    texts = Dataset([tmp_path / "out"], ("conversations",))
    orders = [texts[index].messages[0].content for index in range(36)]  # type: ignore[union-attr]
    assert len(set(orders)) == 36


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    perform_stage: Perform, labelling: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    perform_stage("label", tmp_path / "whole", **labelling)
    assert len(list((tmp_path / "whole").glob("labels-*.safetensors"))) > 3
    write, label, num_labelled = ShardDirectory.write, LocalTeacher.label, []

    def killed(self: ShardDirectory, end: int, labelled: Any) -> None:
        if len(self.notes) == 2:
            write(self, end, labelled)
            self._journal.cut(2)
            raise KeyboardInterrupt
        write(self, end, labelled)

    monkeypatch.setattr(ShardDirectory, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        perform_stage("label", tmp_path / "out", **labelling)
    monkeypatch.setattr(ShardDirectory, "write", write)
    monkeypatch.setattr(
        LocalTeacher,
        "label",
        lambda self, items, advance: num_labelled.append(len(items)) or label(self, items, advance),
    )
    perform_stage("label", tmp_path / "out", **labelling)
    assert 0 < sum(num_labelled) < 12
    whole, out = (artifact.read_manifest(tmp_path / name) for name in ("whole", "out"))
    assert whole.content_hash == out.content_hash


def test_a_changed_bit_is_found_before_training(
    perform_stage: Perform, labelling: Settings, training: Settings, tmp_path: Path
):
    perform_stage("label", tmp_path / "labels", **labelling)
    shard = tmp_path / "labels" / "labels-00001.safetensors"
    contents = bytearray(shard.read_bytes())
    contents[-5] ^= 4
    shard.write_bytes(contents)
    settings = {name: value for name, value in training.items() if name != "data"}
    with pytest.raises(ArtifactError, match=r"labels-00001.safetensors was altered"):
        perform_stage("distill", tmp_path / "out", **settings, labels=str(tmp_path / "labels"))


@pytest.mark.parametrize("damage", ["cut", "foreign", "sizes"])
def test_a_damaged_shard_is_refused_by_name(damage: str, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    row = LabelledRow(
        *(np.ones(5, int), np.ones(5, bool), np.ones((4, 2), int)), *(np.zeros(s) for s in ((4, 2), 4, 4))
    )
    path = tmp_path / "labels-0.safetensors"
    write_shard(path, [row], vocab_size=600)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        tensors = load_file(path)
        tensors = {"x": tensors["ids"]} if damage == "foreign" else tensors | {"tail": tensors["tail"][:-1]}
        save_file(tensors, path, {"bits": "10"})
    with pytest.raises(DataError, match=r"labels-0.safetensors"):
        LabelRows(path)


def test_labels_without_a_header_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"has no labels.json.*puna label"):
        read_header(tmp_path)
    (tmp_path / "labels.json").write_text('{"teacher": "x"}')
    with pytest.raises(DataError, match=r"labels\.json: tokenizer.* a header written by `puna label`"):
        read_header(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": None}, "exactly one of 'teacher'"),
        ({"copies": 2}, "copies = 1 without fresh_identifiers"),
        ({"max_length": 512}, "at most the teacher's 256"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    perform_stage: Perform, labelling: Settings, tmp_path: Path, change: Settings, message: str
):
    settings = {name: value for name, value in {**labelling, **change}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        perform_stage("label", tmp_path / "out", **settings)


def test_the_header_tells_how_much_of_the_teacher_is_kept(
    perform_stage: Perform, labelling: Settings, tmp_path: Path, checkpoint_path: Path
):
    for top_k in (8, 560):
        perform_stage("label", tmp_path / f"{top_k}", **{**labelling, "top_k": top_k})
    few, all_of_them = (read_header(tmp_path / name).measured for name in ("8", "560"))
    assert 0.9 < few["tail"] < 1 and few["covered"] < 1
    assert all_of_them["tail"] < 1e-3 and all_of_them["covered"] == 1
    assert all_of_them["loss"] == pytest.approx(few["loss"], rel=1e-3)
    told = json.loads((tmp_path / "8" / "labels.json").read_text())
    assert told["teacher"] == f"checkpoint {artifact.content_hash(checkpoint_path)[:12]}" and told["top_k"] == 8
    shutil.rmtree(tmp_path / "8")
