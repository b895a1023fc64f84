"""The preview of a run: it shows what is trained on as it is, foresees steps, memory and time, and can stop there."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from puna.data.dataset import Dataset
from puna.data.packing import Batch, Example, Packer, Position
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.llama import Llama
from puna.pipeline.config import parse_config
from puna.pipeline.errors import DataError
from puna.pipeline.execution.executor import preview
from puna.pipeline.run import Run
from puna.pipeline.stages import STAGES
from puna.training import sft
from puna.training.fit import fit
from puna.training.loop.start import starting_model
from puna.training.objectives.next_token import NextToken
from puna.training.reports.preview.data_summary import ShownExample, pieces_of, summarize
from puna.training.reports.preview.estimate import Outcome, RunEstimate
from puna.training.reports.preview.onednn_kernels import compiles_products
from puna.training.reports.preview.render import outcome_lines, render_example

Perform = Callable[..., bool]
Settings = dict[str, Any]

pytestmark = pytest.mark.usefixtures("no_picture")


def packer_of(dataset_path: Path, tokenizer: Tokenizer, *, every_token: bool, **sizes: int) -> Packer:
    objective = NextToken(ChatFormat(tokenizer), every_token, False)
    dataset = Dataset([dataset_path], objective.kinds)
    return Packer(dataset, objective.draw, seed=0, is_cut=objective.is_cut, **sizes)


@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize(("context", "batch_tokens"), [(256, 512), (150, 150), (100, 1000), (40, 64)])
def test_the_batches_of_an_epoch_are_foreseen(
    dataset_path: Path, tokenizer_path: Path, every_token: bool, context: int, batch_tokens: int
):
    tokenizer = Tokenizer.load(tokenizer_path)
    packer = packer_of(dataset_path, tokenizer, every_token=every_token, context=context, batch_tokens=batch_tokens)
    found = summarize(packer, tokenizer, steps=None, epochs=1, accumulate=1)
    if found.num_too_long == found.num_rows:
        with pytest.raises(DataError):
            packer.next(Position())
        return
    batches, position = list[Batch](), Position()
    while position.epoch == 0:
        batch, position = packer.next(position)
        batches.append(batch)
    assert found.steps == len(batches)
    assert found.tokens == sum(len(batch.tokens_T) for batch in batches)
    most = max(batches, key=lambda batch: len(batch.tokens_T))
    assert (found.batch.lengths, found.batch.num_trained) == (most.lengths, int(most.trained_T.sum()))
    assert packer.num_too_long == found.num_too_long


def test_counts_are_those_of_the_rows(dataset_path: Path, tokenizer_path: Path):
    tokenizer = Tokenizer.load(tokenizer_path)
    packer = packer_of(dataset_path, tokenizer, every_token=False, context=100, batch_tokens=512)
    rows = [packer.dataset[index] for index in range(len(packer.dataset))]
    encoded = [ChatFormat(tokenizer).encode(row) for row in rows if isinstance(row, Conversation)]
    found = summarize(packer, tokenizer, steps=8, epochs=None, accumulate=2)
    assert sorted(found.lengths) == sorted(len(ids) - 1 for ids, _ in encoded)
    assert found.num_trained == sum(sum(mask[1:]) for _, mask in encoded)
    assert found.num_too_long == sum(len(ids) - 1 > 100 for ids, _ in encoded)
    counted = found.histogram()
    assert sum(count for _, _, count in counted) == len(encoded)
    assert all(sum(low <= n <= high for n in found.lengths) == count for low, high, count in counted)
    assert found.steps == 8 and found.is_whole


def test_an_example_is_shown_with_every_character_and_its_mask(tokenizer_path: Path):
    tokenizer = Tokenizer.load(tokenizer_path)
    chat = ChatFormat(tokenizer)
    said = [{"role": "user", "content": "Öffnet ihr? 🙂"}, {"role": "assistant", "content": "Ja, 日曜日."}]
    example = Example(*chat.encode(Conversation.from_json({"messages": said})))
    text = render_example(ShownExample("row 1", tuple(pieces_of(example, tokenizer)))).plain
    plain = text.replace("¦", "").replace("↵", "")
    assert plain.replace("⟦", "").replace("⟧", "") == tokenizer.decode(example.ids)
    (trained,) = re.findall("⟦(.*?)⟧", plain)
    assert trained == "Ja, 日曜日.<|eot_id|>"
    is_learned = zip(example.ids, example.mask, strict=True)
    assert trained == tokenizer.decode([token for token, is_trained in is_learned if is_trained])


def test_long_stretches_are_elided_in_the_middle_and_controls_are_not_printed(tokenizer_path: Path):
    tokenizer = Tokenizer.load(tokenizer_path)
    ids = tokenizer.encode("a\x1b[31mb" + " one two" * 300 + " end")
    text = render_example(ShownExample("row 1", tuple(pieces_of(Example(ids, [True] * len(ids)), tokenizer)))).plain
    assert "\x1b" not in text and len(text) < 500
    hidden = re.search(r"… (\d+) tokens …", text)
    assert hidden and int(hidden[1]) + 40 + 16 == len(ids)
    assert text.startswith("⟦") and text.endswith("d⟧")


def test_a_run_keeps_its_preview_and_what_it_took(perform_stage: Perform, training: Settings, tmp_path: Path):
    perform_stage("sft", tmp_path / "out", **training)
    told = json.loads((tmp_path / "out" / "run_preview.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "out" / "run_metrics.jsonl").read_text().splitlines()]
    assert told["survey"]["steps"] == len(rows)
    assert told["survey"]["tokens"] == pytest.approx(rows[-1]["tokens"], rel=0.1)
    assert told["forecast"]["seconds"] > 0
    assert told["outcome"]["tokens_per_second"] > 0
    page = (tmp_path / "out" / "run_preview.md").read_text()
    assert "## What it took" in page and "⟦" in page and "order" in page
    before = (tmp_path / ".runs" / "out" / "preview.md").read_text()
    assert before in page.replace(page[page.index("## What it took") : page.index("## The first examples")], "")


BEFORE = RunEstimate(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, peak_bytes=500, tokens_per_second=100.0, seconds=60.0)


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        (Outcome(700, 60.0, 84.0), ("40% more", "40% longer", "40% fewer")),
        (Outcome(375, 125.0, 48.0), ("25% less", "20% shorter", "25% more")),
        (Outcome(502, 100.3, 59.9), ("as foreseen",) * 3),
    ],
)
def test_an_outcome_is_compared_with_its_forecast_in_words(taken: Outcome, words: tuple[str, str, str]):
    """700 bytes where 500 were foreseen are 40 % more; "-29 %" would be true of the forecast, not of the run."""
    memory, time, rate = outcome_lines(BEFORE, taken)
    told = [word if word == "as foreseen" else f"{word} than foreseen" for word in words]
    assert memory == f"memory: 500 B foreseen, {taken.peak_bytes} B taken, {told[0]}"
    assert time.startswith("time: 60.0 s foreseen, ") and time.endswith(f"taken, {told[1]}")
    assert rate.startswith("tokens/s: 100 foreseen, ") and rate.endswith(f"reached, {told[2]}")


def test_what_was_not_measured_is_not_compared():
    assert list(outcome_lines(BEFORE, Outcome(None, None, None))) == []


def test_only_a_preview_trains_nothing_and_leaves_an_interrupted_run_alone(training: Settings, tmp_path: Path):
    stage = next(stage for stage in STAGES if stage.verb == "sft")
    kept = tmp_path / ".runs" / "out" / "states" / "kept"
    kept.parent.mkdir(parents=True)
    kept.write_text("of another run")
    directory = preview(stage, parse_config(sft.Config, training, where="sft"), tmp_path / "out", Console(quiet=True))
    assert kept.exists() and not (tmp_path / "out").exists()
    assert sorted(path.name for path in directory.glob("preview.*")) == ["preview.json", "preview.md"]
    assert json.loads((directory / "preview.json").read_text())["outcome"] is None
    assert not (directory / "metrics.jsonl").exists()


def test_a_preview_changes_no_weight_and_no_later_step(perform_stage: Perform, training: Settings, tmp_path: Path):
    config = parse_config(sft.Config, training, where="sft")
    model, tokenizer = starting_model(config)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    seen: list[bool] = []

    class Watching(NextToken):
        def losses(self, model: Llama, hidden_TD: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
            weights = zip(before, model.parameters(), strict=True)
            seen.append(all(torch.equal(one, other) and other.grad is None for one, other in weights))
            return super().losses(model, hidden_TD, batch)

    for name in ("run", "out"):
        (tmp_path / name).mkdir()
    run = Run("sft", "key", tmp_path / "out", tmp_path / "run", Console(quiet=True))
    fit(config, run, Watching(ChatFormat(tokenizer), False, False), model, tokenizer)
    assert seen == [True, True, True, False, False, False, False, False]  # two looks ahead, then six steps


class Untrained(NextToken):
    """An objective whose mask forgot everything."""

    def draw(self, row: object, source: object) -> list[Example]:
        return [Example([1, 2, 3], [False] * 3)]


def test_a_run_without_a_trained_token_is_refused(training: Settings, tmp_path: Path):
    config = parse_config(sft.Config, training, where="sft")
    model, tokenizer = starting_model(config)
    for name in ("run", "out"):
        (tmp_path / name).mkdir()
    run = Run("sft", "key", tmp_path / "out", tmp_path / "run", Console(quiet=True))
    with pytest.raises(DataError, match="none of 24 tokens in 12 rows would be trained"):
        fit(config, run, Untrained(ChatFormat(tokenizer), False, False), model, tokenizer)


KERNELS = """
import sys
import torch
from puna.data.packing import Batch
from puna.model.adapters.adapted import AdapterShape, add_adapter
from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.planning.plan.training import Training
from puna.training.objectives.next_token import NextToken
from puna.training.reports.preview.onednn_kernels import compiled_products

torch.set_num_threads(1)
rank = int(sys.argv[1])
model = Llama(LlamaConfig(96, 224, 32, 2, 6, 3, 1056, 512, tie_embeddings=True))
model.initialize(0)
if rank:
    add_adapter(model, AdapterShape(["all"], rank, 1.0), seed=0)
shapes = [((100, 60), 40), ((300, 20, 250), 333), ((256,), 256)]
for lengths, num_trained in shapes:
    ids = torch.arange(sum(lengths)) % 1056
    batch = Batch(ids, ids, torch.arange(len(ids)) < num_trained, lengths)
    loss = NextToken(None, True, False).losses(model, batch.hidden_states(model, torch.bfloat16), batch)["loss"]
    loss.backward()
training = Training(1, 512, lora_rank=rank or None)
print("foreseen", len(compiled_products(model.config, training, shapes)))
"""


@pytest.mark.parametrize("rank", [0, 16], ids=["all weights", "adapter"])
def test_the_products_that_onednn_compiles_are_foreseen_one_by_one(rank: int):
    if not compiles_products(torch.device("cpu")):
        pytest.skip("oneDNN multiplies no bfloat16 on this processor")
    environment = {**os.environ, "ONEDNN_VERBOSE": "profile_create"}
    command = [sys.executable, "-c", KERNELS, str(rank)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = done.stdout.splitlines()
    assert int(lines[-1].removeprefix("foreseen ")) == sum("create:cache_miss" in line for line in lines) > 30


def test_later_batches_of_other_shapes_are_part_of_the_forecast(
    perform_stage: Perform, training: Settings, tmp_path: Path
):
    # The last batch of the epoch is shorter than the others.
    perform_stage("pretrain", tmp_path / "out", **training | {"precision": "bfloat16"})
    told = json.loads((tmp_path / "out" / "run_preview.json").read_text())
    made, batches = told["forecast"], told["survey"]["batches"]
    assert len({sum(batch["lengths"]) for batch in batches}) > 1
    assert (made["kernel_bytes"] > 0) == compiles_products(torch.device("cpu"))
    on_top = made["moments_bytes"] + made["batch_bytes"] + made["kernel_bytes"]
    assert made["peak_bytes"] == made["held_bytes"] + on_top
    page = (tmp_path / "out" / "run_preview.md").read_text()
    assert ("oneDNN kernels for batches" in page) == (made["kernel_bytes"] > 0)
    # A network of 0.1 MB: what is foreseen are the process and the kernels, and both come so.
    assert told["outcome"]["peak_bytes"] == pytest.approx(made["peak_bytes"], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "table",
    [
        {"init_from": "recipes/teacher", "adapter": {"rank": 16, "alpha": 32.0}, "checkpoint_activations": True},
        {"init_from": "recipes/teacher", "max_length": 512, "batch_tokens": 1024},
    ],
    ids=["adapter", "all weights"],
)
def test_the_memory_of_a_run_of_its_own_is_foreseen_within_15_percent(table: Settings, tmp_path: Path):
    """The runs of docs/start/afternoon.md, as processes: conversations of many lengths, the shipped teacher."""
    source, words = random.Random(0), ["the", "order", "parcel", "shop", "opens", "at", "nine", "today"]
    folder = tmp_path / "data"
    folder.mkdir()
    with (folder / "conversations.jsonl").open("w") as file:
        for _ in range(300):
            asked, said = (" ".join(source.choices(words, k=source.randint(5, 120))) for _ in range(2))
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            file.write(json.dumps({"messages": messages}) + "\n")
    start = str(Path(__file__).parents[2] / table["init_from"])
    settings = {**table, "init_from": start, "data": [str(folder)], "epochs": 1}
    program = "from puna.cli import main; main()"
    lines = [f"{name} = {_toml(value)}" for name, value in settings.items()]
    (tmp_path / "run.toml").write_text("\n".join(["[sft]", *lines]) + "\n")
    command = [
        sys.executable,
        "-c",
        program,
        "sft",
        "--config",
        str(tmp_path / "run.toml"),
        "--out",
        str(tmp_path / "a"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    told = json.loads((tmp_path / "a" / "run_preview.json").read_text())
    assert told["outcome"]["peak_bytes"] == pytest.approx(told["forecast"]["peak_bytes"], rel=0.15)


def _toml(value: Any) -> str:
    """Write a setting as TOML has it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + " }"
    return json.dumps(value)
