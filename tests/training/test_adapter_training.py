"""Runs that train an adapter: what they write, how they go on, what they refuse; and blocks that are computed again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_rows import row, write
from safetensors.torch import load_file
from test_tuning import gradients_of, new_batch

from puna.formats.checkpoint.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.inference.engine.local import LocalSampler, sampling_defaults
from puna.inference.engine.sampling.params import SamplingParams
from puna.model.attend import packed_attend
from puna.pipeline.artifacts import artifact
from puna.pipeline.config import parse_config
from puna.pipeline.errors import CheckpointError, ConfigError
from puna.pipeline.run import Run
from puna.planning.doctor.examine import examine
from puna.training import reward
from puna.training.loop.start import starting_model
from puna.training.sft import Config

Perform = Callable[..., bool]
Settings = dict[str, Any]
AT_EVERY_STEP = 1e-9

pytestmark = pytest.mark.usefixtures("no_picture")


class PowerFailure(BaseException):
    """Ends a run where nobody expects it."""


@pytest.fixture
def tuning(training: Settings, checkpoint_path: Path) -> Settings:
    """Settings of a run that trains an adapter."""
    begin = {"init_from": str(checkpoint_path), "adapter": {"rank": 2, "alpha": 4}}
    return {key: value for key, value in training.items() if key not in ("size", "tokenizer")} | begin


@pytest.fixture(scope="module")
def quantized_path(perform_stage: Perform, checkpoint_path: Path, dataset_path: Path, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "out"
    settings = {"checkpoint": str(checkpoint_path), "data": [str(dataset_path)], "scheme": "int4", "group_size": 16}
    perform_stage("quantize", path, **settings, num_tokens=100, ignore_receipts=True)
    return path


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "run_metrics.jsonl").read_text().splitlines()]


def adapter_hash(out: Path) -> str:
    return artifact.hash_file(out / WEIGHTS_NAME)


@pytest.mark.parametrize("verb", ["pretrain", "sft", "distill", "dpo"])
def test_every_way_to_train_can_train_an_adapter(
    perform_stage: Perform, tuning: Settings, tmp_path: Path, checkpoint_path: Path, verb: str
):
    more = {"teacher": str(checkpoint_path)} if verb == "distill" else {}
    if verb == "dpo":
        more = {"data": [str(write(tmp_path / "pairs", [row(n) for n in range(6)]))]}
    before = artifact.content_hash(checkpoint_path)
    perform_stage(verb, tmp_path / "out", **{**tuning, **more})
    manifest = artifact.verify(tmp_path / "out")
    assert manifest.kind == "adapter" and "start" in manifest.inputs
    assert not list((tmp_path / "out").glob("model*.safetensors"))
    tensors = load_file(tmp_path / "out" / WEIGHTS_NAME)
    assert len(tensors) == 14 and all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert artifact.content_hash(checkpoint_path) == before
    report = examine(tmp_path / "out")
    assert report.kind == "adapter" and not report.findings, report.findings
    assert report.facts["base"] == str(checkpoint_path.resolve())
    log = (tmp_path / ".runs" / "out" / "log.txt").read_text()
    assert "an adapter of 512 parameters beside 11,312 (4.53%) that stay as they are, in float32" in log


def test_over_a_quantized_start_an_adapter_learns_and_all_weights_do_not(
    perform_stage: Perform, tuning: Settings, tmp_path: Path, quantized_path: Path
):
    settings = {**tuning, "init_from": str(quantized_path), "steps": 16, "adapter": {"rank": 2, "alpha": 64}}
    perform_stage("sft", tmp_path / "out", **settings, ignore_receipts=True)
    assert max(losses(tmp_path / "out")[-4:]) < min(losses(tmp_path / "out")[:2]) - 0.02
    del settings["adapter"]
    with pytest.raises(ConfigError, match=r"is quantized.*--adapter\.rank"):
        perform_stage("sft", tmp_path / "other", **settings, ignore_receipts=True)


def test_an_interrupted_run_ends_with_the_adapter_of_one_that_was_not(
    perform_stage: Perform, tuning: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {**tuning, "save_minutes": AT_EVERY_STEP, "adapter": {"rank": 2, "dora": True, "dropout": 0.2}}
    perform_stage("sft", tmp_path / "whole", **settings)
    write = Run.metrics
    for failing in (1, 3, 6):

        def write_or_fail(self: Run, step: int, failing: int = failing, **values: float) -> None:
            write(self, step, **values)
            if step == failing:
                raise PowerFailure

        monkeypatch.setattr(Run, "metrics", write_or_fail)
        with pytest.raises(PowerFailure):
            perform_stage("sft", tmp_path / "out", **settings)
    states = tmp_path / ".runs" / "out" / "states"
    saved = load_file(max(states.iterdir()) / "model.safetensors")
    assert len(saved) == 21 and not any("frozen" in name for name in saved)
    monkeypatch.setattr(Run, "metrics", write)
    perform_stage("sft", tmp_path / "out", **settings)
    assert adapter_hash(tmp_path / "out") == adapter_hash(tmp_path / "whole")
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    perform_stage("sft", tmp_path / "dry", **{**settings, "adapter": {"rank": 2, "dora": True}})
    assert losses(tmp_path / "dry") != losses(tmp_path / "whole")


def test_dropout_leaves_the_validation_loss_alone(perform_stage: Perform, tuning: Settings, tmp_path: Path):
    settings = {**tuning, "steps": 1, "validation": tuning["data"], "optim": {"lr": 1e-12}}
    found = []
    for dropout in (0.0, 0.5):
        out = tmp_path / str(dropout)
        # Rows of the start that an adapter which adds something is trained on: at its start it adds nothing to drop.
        perform_stage("sft", out / "first", **tuning)
        goes_on = {"init_from": str(out / "first"), "dropout": dropout}
        perform_stage("sft", out / "second", **{**settings, "adapter": goes_on})
        found.append(json.loads((out / "second" / "run_metrics.jsonl").read_text().splitlines()[-1]))
    assert found[0]["loss"] != found[1]["loss"]
    assert found[0]["validation_loss"] == pytest.approx(found[1]["validation_loss"], rel=1e-6)


@pytest.mark.parametrize("variant", [{"rank": 2}, {"rank": 4, "alpha": 3, "dora": True, "rank_stabilized": True}])
def test_an_adapter_goes_on_where_it_ended(perform_stage: Perform, tuning: Settings, tmp_path: Path, variant: Settings):
    settings = {**tuning, "adapter": variant, "optim": {"lr": 0.01, "warmup_steps": 0, "final_lr_share": 1.0}}
    perform_stage("sft", tmp_path / "first", **settings)
    goes_on = {**settings, "adapter": {"init_from": str(tmp_path / "first")}, "steps": 2, "optim": {"lr": 1e-12}}
    perform_stage("sft", tmp_path / "second", **goes_on)
    one, other = (json.loads((tmp_path / name / CONFIG_NAME).read_text()) for name in ("first", "second"))
    assert one == other
    before, after = (load_file(tmp_path / name / WEIGHTS_NAME) for name in ("first", "second"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=1e-5)
    assert losses(tmp_path / "second")[0] < losses(tmp_path / "first")[0]
    assert "adapter.start" in artifact.read_manifest(tmp_path / "second").inputs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": ["lm_head"]}, "head and embeddings are one table"),
        ({"init_from": "ADAPTER", "rank": 4}, "no rank beside 'init_from'"),
        ({"init_from": "BASE"}, r"adapter\.init_from = .*; expected the directory of an adapter"),
        ({"targets": ["embed_tokens"]}, "targets"),
        ({"targets": []}, "targets"),
    ],
)
def test_what_cannot_be_adapted_is_refused(
    perform_stage: Perform, tuning: Settings, tmp_path: Path, checkpoint_path: Path, change: Settings, words: str
):
    perform_stage("sft", tmp_path / "first", **{**tuning, "steps": 1})
    places = {"ADAPTER": str(tmp_path / "first"), "BASE": str(checkpoint_path)}
    table = {key: places.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    with pytest.raises(ConfigError, match=words):
        perform_stage("sft", tmp_path / "out", **{**tuning, "adapter": table})


def test_an_adapter_in_the_place_of_a_checkpoint_is_called_one(
    perform_stage: Perform, tuning: Settings, tmp_path: Path
):
    perform_stage("sft", tmp_path / "first", **{**tuning, "steps": 1})
    del tuning["adapter"]
    with pytest.raises(
        CheckpointError, match=r"first is an adapter; expected a checkpoint.*puna merge.*adapter\.init_from"
    ):
        perform_stage("sft", tmp_path / "out", **{**tuning, "init_from": str(tmp_path / "first")})


def test_a_reward_model_is_no_adapter(tuning: Settings):
    with pytest.raises(ConfigError, match="no adapter"):
        parse_config(reward.Config, tuning, where="reward")


def test_an_adapter_without_a_start_is_refused(training: Settings):
    with pytest.raises(ConfigError, match="'adapter' beside 'init_from'"):
        parse_config(Config, {**training, "adapter": {}}, where="sft")


# Blocks that are computed again in the backward pass


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", [None, {"rank": 2, "dora": True, "dropout": 0.3}], ids=["all", "adapter"])
def test_blocks_that_are_computed_again_give_the_same_gradients(
    training: Settings, tuning: Settings, precision: str, adapter: Settings | None
):
    settings = {**(tuning if adapter else training), "precision": precision} | ({"adapter": adapter} if adapter else {})
    found, kept = [], []
    for checkpoint_activations in (False, True):
        table = {**settings, "checkpoint_activations": checkpoint_activations}
        config, batch = parse_config(Config, table, where="sft"), new_batch()
        model, _ = starting_model(config)
        torch.manual_seed(3)
        sizes: list[int] = []

        def count(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            hidden_TD = model.train()(
                batch.tokens_T, batch.positions_T, packed_attend(batch.lengths), dtype=config.dtype
            )
        found.append(gradients_of(model, (hidden_TD.float() ** 3).sum()))
        kept.append(sum(sizes))
    assert found[0].keys() == found[1].keys() and found[0]
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
    assert kept[1] < kept[0] / 4


def test_with_blocks_computed_again_a_run_gives_the_same_weights(
    perform_stage: Perform, training: Settings, tmp_path: Path
):
    for name, checkpoint_activations in (("plain", False), ("again", True)):
        perform_stage("sft", tmp_path / name, **training, checkpoint_activations=checkpoint_activations)
    one, other = (artifact.hash_file(tmp_path / name / "model.safetensors") for name in ("plain", "again"))
    assert one == other and Checkpoint.open(tmp_path / "again").config.num_layers == 1


# An adapter in the place of a checkpoint: run beside its base


@pytest.mark.parametrize("is_over_rounded", [False, True])
def test_an_adapter_answers_beside_its_base(
    perform_stage: Perform,
    tuning: Settings,
    tmp_path: Path,
    checkpoint_path: Path,
    quantized_path: Path,
    is_over_rounded: bool,
):
    start = quantized_path if is_over_rounded else checkpoint_path
    settings = {**tuning, "init_from": str(start), "adapter": {"rank": 2, "alpha": 200}, "optim": {"lr": 0.05}}
    perform_stage("sft", tmp_path / "out", **settings, ignore_receipts=True)
    params, prompt = SamplingParams(max_tokens=8, logprobs=1), [5, 9, 3, 77]
    alone, sampler = (LocalSampler.open(path) for path in (start, tmp_path / "out"))
    config = parse_config(Config, {**settings, "adapter": {"init_from": str(tmp_path / "out")}}, where="sft")
    model, _ = starting_model(config)
    (answer,), (other,) = sampler.complete([prompt], params), alone.complete([prompt], params)
    ids = [*prompt, *answer.ids]
    with torch.no_grad():
        hidden_TD = model(torch.tensor(ids), torch.arange(len(ids)), packed_attend([len(ids)]), dtype=torch.float32)
        assert model.logits(hidden_TD[3:-1]).argmax(-1).tolist() == answer.ids != other.ids
    assert sampling_defaults(tmp_path / "out", params) == sampling_defaults(start, params)


def test_an_adapter_is_evaluated_beside_its_base(
    perform_stage: Perform, tuning: Settings, tmp_path: Path, checkpoint_path: Path, dataset_path: Path
):
    perform_stage("sft", tmp_path / "out", **tuning)
    checkpoints = {"before": str(checkpoint_path), "after": str(tmp_path / "out")}
    settings = {"tasks": [str(dataset_path)], "max_questions": 3, "max_tokens": 4, "checkpoints": checkpoints}
    perform_stage("evaluate", tmp_path / "scores", **settings)
    speed = json.loads((tmp_path / "scores" / "speed.json").read_text())
    sizes = {name: values["weight_bytes"] for name, values in speed.items()}
    assert sizes["after"] == sizes["before"] + (tmp_path / "out" / WEIGHTS_NAME).stat().st_size


def test_an_adapter_whose_base_is_gone_or_another_or_that_must_be_merged_first_says_so(
    perform_stage: Perform, training: Settings, tuning: Settings, tmp_path: Path
):
    perform_stage("sft", tmp_path / "base", **{**training, "steps": 1})
    tuning = {**tuning, "init_from": str(tmp_path / "base"), "steps": 1}
    perform_stage("sft", tmp_path / "out", **tuning)
    perform_stage("sft", tmp_path / "dora", **{**tuning, "adapter": {"dora": True}})
    LocalSampler.open(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"beside a base.*puna merge"):
        LocalSampler.open(tmp_path / "dora")
    perform_stage("sft", tmp_path / "base", **{**training, "steps": 1, "seed": 5})
    with pytest.raises(CheckpointError, match="has changed since the training"):
        LocalSampler.open(tmp_path / "out")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"its base is not here.*puna merge"):
        LocalSampler.open(tmp_path / "out")
