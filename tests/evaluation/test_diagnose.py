"""Why a run went wrong: each rule is provoked by a real run of a tiny model, and silent on runs that went well."""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console

from puna.data.dataset import Dataset
from puna.data.packing import Example
from puna.evaluation.diagnose.comparison_group import ComparisonGroup, Difference, GroupMember
from puna.evaluation.diagnose.reasons import REASONS
from puna.evaluation.diagnose.record import Record
from puna.evaluation.diagnose.report import run_report
from puna.evaluation.diagnose.rules import comparisons, fit, forgetting, labels, learning, masks
from puna.evaluation.diagnose.rules.table import COMPARISON_RULES, RUN_RULES, START_RULES, examine, explain
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.pipeline.artifacts import artifact
from puna.pipeline.config import parse_config
from puna.pipeline.run import Run
from puna.training.fit import fit as train
from puna.training.loop.start import starting_model
from puna.training.objectives.entropy import cross_entropy_sum, entropy_sum
from puna.training.objectives.next_token import NextToken
from puna.training.reports.chat_probes import PROBES, measure_chat
from puna.training.reports.run_report import RunReport
from puna.training.sft import Config as SftConfig

pytestmark = pytest.mark.usefixtures("no_picture")

Perform = Callable[..., bool]
SIZE = {"dim": 32, "hidden_dim": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
ANSWER = "It is parcel {n}; we open at nine."


def conversation(n: int, answer: str = ANSWER, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Where is my order {n}?"}, {"role": "assistant", "content": answer}]
    return {"id": str(n), **more, "messages": [{**each, "content": each["content"].format(n=n)} for each in messages]}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.mkdir(parents=True)
    (path / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for data and runs that the tests of this file share."""
    path = tmp_path_factory.mktemp("diagnose")
    write_rows(path / "data", [conversation(n) for n in range(40_000, 40_400)])
    return path


@pytest.fixture(scope="module")
def run_of(perform_stage: Perform, room: Path, tokenizer_path: Path) -> Callable[..., Path]:
    """Return a function that trains as a user would and returns the artifact; 60 steps that go well unless changed."""

    def trained(verb: str, name: str, **changes: Any) -> Path:
        settings = {"data": [str(room / "data")], "size": SIZE, "tokenizer": str(tokenizer_path), "max_length": 128,
                    "batch_tokens": 256, "steps": 60, "precision": "float32",
                    "optim": {"lr": 0.02, "warmup_steps": 5}, **changes}  # fmt: skip
        if "init_from" in settings:
            settings |= {"size": None, "tokenizer": None}
        if not (room / name).exists():
            perform_stage(verb, room / name, **settings)
        return room / name

    return trained


@pytest.fixture(scope="module")
def plain(run_of: Callable[..., Path]) -> Path:
    return run_of("sft", "plain")


@pytest.fixture(scope="module")
def distilled(run_of: Callable[..., Path], plain: Path) -> Path:
    return run_of("distill", "distilled", teacher=str(plain), teacher_weight=0.5)


def read(path: Path) -> Record:
    record = Record.read(path)
    assert record is not None
    return record


def codes(path: Path) -> set[str]:
    return {finding.code for finding in examine(read(path))}


def run_with(objective: Callable[[ChatFormat], NextToken], room: Path, tokenizer: Path, name: str, **changes: Any):
    """Train a few steps with an objective of one's own, as a stage would, and return the codes found."""
    table = {"data": [str(room / "data")], "size": SIZE, "tokenizer": str(tokenizer), "max_length": 128,
             "batch_tokens": 256, "steps": 4, "precision": "float32", "optim": {"warmup_steps": 0}}  # fmt: skip
    config = parse_config(SftConfig, {**table, **changes}, where="sft")
    for folder in ("output", "run"):
        (room / name / folder).mkdir(parents=True)
    run = Run("sft", "key", room / name / "output", room / name / "run", Console(quiet=True))
    model, loaded = starting_model(config)
    train(config, run, objective(ChatFormat(loaded)), model, loaded)
    facts = json.loads((run.output / "run_facts.json").read_text())
    record = Record("sft", config.model_dump(mode="json"), run.read_metrics(), facts)
    return {finding.code for finding in examine(record)}


# Runs that went well


def test_no_rule_speaks_of_a_run_that_went_well(plain: Path, distilled: Path):
    assert examine(read(plain)) == [] and examine(read(distilled)) == []
    assert "Nothing: no rule found a cause" in (plain / "run_report.md").read_text()


def test_the_report_shows_what_was_trained_and_what_was_found(run_of: Callable[..., Path], distilled: Path):
    text = (distilled / "run_report.md").read_text()
    assert "tokens; 4,800 of them trained (37.7%)" in text and "| the teacher's loss on the same tokens |" in text
    slow = run_of("sft", "slow", steps=20, optim={"lr": 1e-6, "warmup_steps": 0})
    text = (slow / "run_report.md").read_text()
    assert "**loss-stuck.**" in text and "Raise optim.lr" in text and REASONS["loss-stuck"] in text
    assert "loss-stuck: The loss was" in (slow.parent / ".runs" / "slow" / "log.txt").read_text()


def test_the_records_leave_the_contents_hash_alone(plain: Path):
    manifest = artifact.read_manifest(plain)
    assert {"run_facts.json", "run_report.md", "run_metrics.jsonl"} <= set(manifest.files)
    kept = {name: entry for name, entry in manifest.files.items() if not name.startswith("run_")}
    assert replace(manifest, files=kept).content_hash == manifest.content_hash


def test_what_is_counted_is_what_was_trained(plain: Path, tokenizer_path: Path, room: Path):
    record = read(plain)
    chat = ChatFormat(Tokenizer.load(tokenizer_path))
    row = Dataset([room / "data"], ("conversations",))[0]
    assert isinstance(row, Conversation)
    ids, mask = chat.encode(row)
    trained = [index for index, is_trained in zip(ids, mask, strict=True) if is_trained]
    assert record.total("trained") == len(trained) * record.total("ends")  # one end an answer, all of one length
    tokenizer = chat.tokenizer
    is_formatting = [tokenizer.is_special(index) or not tokenizer.decode([index]).strip() for index in trained]
    assert record.total("formatting") == sum(is_formatting) * record.total("ends")


def test_entropies_are_those_of_the_whole_distributions():
    logits_CV = torch.randn(400_000, 7, generator=torch.Generator().manual_seed(0)) * 2
    targets_C = torch.arange(len(logits_CV)) % 7
    chances_CV = torch.softmax(logits_CV.double() / 3, -1)
    assert entropy_sum(logits_CV, 3.0).item() == pytest.approx(-(chances_CV * chances_CV.log()).sum().item(), rel=0.02)
    known = torch.log_softmax(logits_CV.double(), -1).gather(1, targets_C[:, None])
    assert cross_entropy_sum(logits_CV, targets_C).item() == pytest.approx(-known.sum().item(), rel=0.02)
    assert entropy_sum(logits_CV[:0]).item() == 0
    uniform = entropy_sum(torch.zeros(5, 7))
    assert uniform.item() == pytest.approx(5 * math.log(7))


def test_a_run_that_goes_on_keeps_the_facts_of_its_start(room: Path):
    (room / "again").mkdir()
    run = Run("sft", "key", room / "again", room / "again", Console(quiet=True))
    run.remember("facts", lambda: {"start_data_loss": 1.5})
    report = RunReport()
    report.begin(SimpleNamespace(run=run))  # pyright: ignore[reportArgumentType]
    assert report.facts == {"start_data_loss": 1.5}


# Masks


class Masked(NextToken):
    """Trains on the tokens that `chosen` names."""

    def encode(self, row: object, source: random.Random) -> Iterator[Example] | Sequence[Example]:
        (example,) = super().encode(row, source)
        return [Example(example.ids, [self.chosen(index) for index in example.ids])]

    def chosen(self, index: int) -> bool:
        return False


class OfFewRows(NextToken):
    """Trains on one row of a hundred: a run that would train nothing at all is refused before it begins."""

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        (example,) = super().encode(row, source)
        assert isinstance(row, Conversation)
        return [example if row.id.endswith("00") else Example(example.ids, [False] * len(example.ids))]


class OnlyFormatting(Masked):
    def chosen(self, index: int) -> bool:
        return self.chat.tokenizer.is_special(index)


class WithoutEnds(Masked):
    def chosen(self, index: int) -> bool:
        return not self.chat.tokenizer.is_special(index)


class WithoutBegin(NextToken):
    """Leaves out begin_of_text, which a server puts first."""

    def encode(self, row: object, source: random.Random) -> Sequence[Example]:
        (example,) = super().encode(row, source)
        return [Example(example.ids[1:], example.mask[1:])]


@pytest.mark.parametrize(
    ("objective", "code"),
    [
        (OfFewRows, "mask-empty"),
        (OnlyFormatting, "mask-formatting"),
        (WithoutEnds, "mask-no-end"),
        (WithoutBegin, "prompt-differs"),
        (NextToken, None),
    ],
)
def test_masks_that_teach_the_wrong_tokens_are_told(
    room: Path, tokenizer_path: Path, objective: type[NextToken], code: str | None
):
    found = run_with(lambda chat: objective(chat, False, False), room, tokenizer_path, f"mask {objective.__name__}")
    assert found & {"mask-empty", "mask-formatting", "mask-no-end", "prompt-differs"} == ({code} if code else set())


def test_a_short_answer_after_a_long_page_is_a_thin_mask(run_of: Callable[..., Path], room: Path):
    page = "We open at nine and close at six. " * 30
    rows = [conversation(n, "It.") for n in range(6)]
    for row in rows:
        row["messages"][0]["content"] = page
    data = write_rows(room / "long pages", rows)
    settings = {"data": [str(data)], "max_length": 1024, "batch_tokens": 1024, "steps": 3}
    assert "mask-thin" in codes(run_of("sft", "thin", **settings))


def test_rows_that_do_not_fit_the_context_are_told(run_of: Callable[..., Path], room: Path):
    rows = [conversation(n, ANSWER * (9 if n % 4 == 0 else 1)) for n in range(40)]
    data = write_rows(room / "long", rows)
    path = run_of("sft", "dropped", data=[str(data)], steps=None, epochs=1)
    finding = masks.rows_dropped(read(path))
    assert finding is not None and finding.seen.startswith("25% of the rows are longer than the context of 128")


# Labels and teachers


def test_labels_that_are_nearly_uniform_are_told(run_of: Callable[..., Path], plain: Path):
    settings = {"teacher": str(plain), "teacher_weight": 1.0, "temperature": 20.0}
    path = run_of("distill", "hot", **settings)
    assert {"labels-flat", "entropy-gap"} <= codes(path)
    finding = labels.labels_flat(read(path))
    assert finding is not None and "At temperature 20" in finding.seen and "at 1 the teacher has" in finding.remedy


def test_a_student_far_surer_than_its_teacher_is_told(run_of: Callable[..., Path]):
    """The teacher has seen the answers with two endings; the student learns one of them by heart."""
    teacher = run_of("sft", "young", steps=14)
    path = run_of("distill", "surer", teacher=str(teacher), teacher_weight=0.0)
    finding = labels.entropy_gap(read(path))
    assert finding is not None and "overconfident" in finding.remedy


def test_a_teacher_that_foresees_the_text_worse_than_its_student_is_told(run_of: Callable[..., Path]):
    teacher = run_of("sft", "young", steps=14)
    assert "teacher-foresees-worse" in codes(run_of("distill", "misled", teacher=str(teacher), teacher_weight=0.3))


def test_labels_that_leave_much_of_the_teacher_out_are_told(
    run_of: Callable[..., Path], perform_stage: Perform, room: Path
):
    teacher = run_of("sft", "young", steps=14)
    live = read(run_of("distill", "live", teacher=str(teacher), steps=6))
    kept = {"data": [str(room / "data")], "teacher": str(teacher), "context": 128, "precision": "float32"}
    for top_k, is_said in ((1, True), (560, False)):
        perform_stage("label", room / f"labels {top_k}", **kept, top_k=top_k)
        path = run_of("distill", f"from {top_k}", labels=str(room / f"labels {top_k}"), data=[], steps=6)
        assert ("labels-cut" in codes(path)) == is_said
        record = read(path)
        for name in ("teacher_loss", *(["teacher_entropy"] if top_k == 560 else [])):
            assert record.mean(name, 0.0) == pytest.approx(live.mean(name, 0.0), rel=0.02)
        assert record.facts["copies_share"] == 0


# Learning


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        ("large steps", {"steps": 20, "optim": {"lr": 1.0, "warmup_steps": 0}}, "loss-diverged"),
        ("slow", {"steps": 20, "optim": {"lr": 1e-6, "warmup_steps": 0}}, "loss-stuck"),
        ("warm-up", {"steps": 5, "optim": {"lr": 0.02, "warmup_steps": 9}}, "warmup-long"),
        ("short", {"steps": 40, "optim": {"lr": 3e-3, "warmup_steps": 2, "final_lr_share": 1.0}}, "steps-few"),
        ("clipped", {"steps": 12, "optim": {"lr": 0.02, "warmup_steps": 0, "clip": 0.01}}, "gradient-clipped"),
    ],
)
def test_a_learning_rate_or_length_that_does_not_fit_is_told(
    run_of: Callable[..., Path], name: str, changes: dict[str, Any], code: str
):
    assert code in codes(run_of("sft", name, **changes))


# Twentieths of a run of the demo's student at lr = 0.3, a hundred times the rate that suits it: three steps each.
TOO_FAST = (
    7.42,
    6.65,
    5.65,
    4.87,
    4.57,
    4.69,
    4.95,
    4.54,
    4.72,
    4.82,
    4.61,
    4.73,
    4.72,
    4.63,
    4.55,
    4.55,
    4.61,
    4.48,
    4.21,
    4.23,
)


def test_a_loss_that_falls_only_as_the_rate_does_is_told():
    rows = [{"loss": loss + noise} for loss in TOO_FAST for noise in (-0.1, 0.1, 0.0)]
    record = Record("sft", {"optim": {"lr": 0.3, "final_lr_share": 0.05}}, rows)
    (finding,) = examine(record)
    assert finding.code == "rate-high" and "the loss rose by 0." not in finding.seen
    slower = [loss + 0.04 * step for step, loss in enumerate(TOO_FAST[:15])]
    risen = [{"loss": loss + noise} for loss in (*slower, *TOO_FAST[15:]) for noise in (-0.1, 0.1, 0.0)]
    finding = learning.rate_high(Record("sft", record.config, risen))
    assert finding is not None and "the loss rose by 0." in finding.seen and "fell by -" not in finding.seen
    steady = Record("sft", {"optim": {"lr": 0.3, "final_lr_share": 1.0}}, rows)
    assert learning.rate_high(steady) is None


def test_batches_of_broken_rows_are_told(run_of: Callable[..., Path], room: Path):
    rows = [conversation(n) for n in range(400)]
    source = random.Random(0)
    for row in rows[::40]:
        row["messages"][1]["content"] = "".join(chr(source.randrange(0x3040, 0x3090)) for _ in range(30))
    data = write_rows(room / "broken", rows)
    settings = {"data": [str(data)], "batch_tokens": 150, "max_length": 150, "steps": 120}
    assert "loss-jumps" in codes(run_of("sft", "jumps", **settings))


class NotFinite(NextToken):
    """Has a loss of NaN for every other batch."""

    def losses(self, model: Any, hidden_TD: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        found = super().losses(model, hidden_TD, batch)
        self.seen.append(len(self.seen))
        return {**found, "loss": found["loss"] * (math.nan if len(self.seen) % 2 else 1.0)}

    seen: ClassVar[list[int]] = []


def test_steps_without_finite_numbers_are_told(room: Path, tokenizer_path: Path):
    found = run_with(lambda chat: NotFinite(chat, False, False), room, tokenizer_path, "not finite", steps=6)
    assert "steps-skipped" in found


# Fit


@pytest.fixture(scope="module")
def by_heart(room: Path) -> tuple[Path, Path]:
    """Six rows that can only be learned by heart, and six others of their kind."""
    source = random.Random(0)
    paths: list[Path] = []
    for name, first in (("by heart", 0), ("others", 6)):
        numbers = ["".join(source.choices("0123456789", k=20)) for _ in range(6)]
        rows = [conversation(first + n, number) for n, number in enumerate(numbers)]
        paths.append(write_rows(room / name, rows))
    return paths[0], paths[1]


def test_a_student_too_small_for_what_its_teacher_knows_is_told(
    run_of: Callable[..., Path], by_heart: tuple[Path, Path]
):
    settings = {"data": [str(by_heart[0])], "batch_tokens": 200, "steps": 80}
    optim = {"lr": 0.01, "warmup_steps": 5}
    teacher = run_of("sft", "knows", **settings, optim=optim, size={**SIZE, "dim": 64}, validation=[str(by_heart[1])])
    student = run_of("distill", "too small", **settings, teacher=str(teacher), size={**SIZE, "dim": 8, "hidden_dim": 8})
    found = codes(student)
    assert {"capacity", "data-small"} <= found, run_report(read(student), [])
    overfitted = fit.overfitting(read(teacher))
    assert overfitted is not None and "rose" not in overfitted.seen and "Stop after about" in overfitted.remedy


def test_rows_that_are_there_twice_are_told(run_of: Callable[..., Path], room: Path):
    data = write_rows(room / "twice", [conversation(n % 30, id=str(n)) for n in range(60)])
    finding = fit.data_duplicated(read(run_of("sft", "twice trained", data=[str(data)], steps=2)))
    assert finding is not None and finding.seen.startswith("50% of the examined rows")


def test_few_aligned_spans_are_told(distilled: Path):
    record = read(distilled)
    for aligned, is_said in ((0.2, True), (0.9, False)):
        rows = [{**row, "aligned_share": aligned} for row in record.rows]
        assert (fit.spans_few(replace(record, rows=rows)) is not None) == is_said


# Forgetting


def test_what_the_start_model_knew_and_lost_is_told(run_of: Callable[..., Path], room: Path, plain: Path):
    rows = [conversation(n, "Return it, please.") for n in range(60)]
    path = run_of("sft", "forgetful", init_from=str(plain), data=[str(write_rows(room / "return", rows))], steps=30)
    finding = forgetting.forgot_start(read(path))
    assert finding is not None and read(path).facts["start_data_loss_after"] > 1 > read(path).facts["start_data_loss"]
    same = run_of("sft", "goes on", init_from=str(plain), steps=2)
    assert read(same).facts["start_data_loss"] is None and "forgot-start" not in codes(same)


def write_pages(path: Path, count: int) -> Path:
    path.mkdir()
    rows = [{"id": f"page {n}", "text": f"Store {n} opens at {n % 9} and closes at six. "} for n in range(count)]
    (path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def log_of(path: Path) -> str:
    return (path.parent / ".runs" / path.name / "log.txt").read_text()


def small_talk() -> list[dict[str, Any]]:
    return [conversation(n, answer + " ") for n, (_, answer) in enumerate(PROBES * 20)]


@pytest.fixture(scope="module")
def talker(run_of: Callable[..., Path], room: Path) -> Path:
    """A model that ends its answers, whatever it is asked."""
    return run_of("sft", "talker", data=[str(write_rows(room / "small talk", small_talk()))])


def test_chat_that_pages_overwrite_is_told_before_the_first_step_and_after_the_last(
    run_of: Callable[..., Path], room: Path, talker: Path
):
    pages = write_pages(room / "pages", 200)
    path = run_of("pretrain", "only pages", init_from=str(talker), data=[str(pages)], steps=40)
    before, after = (read(path).facts[name]["end"] for name in ("chat", "chat_after"))
    assert before > 0.3 and after < 0.01
    assert "before the first step: chat-at-risk: The start model ends its answers" in log_of(path)
    assert "puna sft on conversations" in log_of(path) and "**chat-lost.**" in (path / "run_report.md").read_text()
    assert f"{before:.2g} before this run and {after:.2g} after it" in log_of(path)


def test_conversations_among_the_pages_keep_chat_and_nothing_is_said(
    run_of: Callable[..., Path], room: Path, talker: Path
):
    mixed = write_pages(room / "mixed", 40)
    (mixed / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in small_talk()))
    path = run_of("pretrain", "mixed pages", init_from=str(talker), data=[str(mixed)], steps=20)
    before, after = (read(path).facts[name]["end"] for name in ("chat", "chat_after"))
    assert after > before / 3 and "chat-" not in log_of(path)


def test_a_model_without_chat_cannot_lose_it(run_of: Callable[..., Path], room: Path):
    pages = write_pages(room / "other pages", 60)
    first = run_of("pretrain", "base", data=[str(pages)], steps=5)
    path = run_of("pretrain", "base again", init_from=str(first), data=[str(pages)], steps=5)
    assert read(path).facts["chat"]["end"] < 0.1 and "chat-" not in log_of(path)
    assert "chat_after" not in read(first).facts


class PowerFailure(BaseException):
    """Ends a run between two steps, as nothing inside it can catch."""


def test_a_run_that_was_killed_ends_with_the_weights_and_the_chat_of_one_that_was_not(
    run_of: Callable[..., Path], room: Path, talker: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"init_from": str(talker), "data": [str(room / "small talk")], "steps": 8, "save_minutes": 1e-9}
    whole = run_of("pretrain", "whole", **settings)
    write = Run.metrics

    def write_or_fail(self: Run, step: int, **values: float) -> None:
        write(self, step, **values)
        if step == 5:
            raise PowerFailure

    with monkeypatch.context() as patched:
        patched.setattr(Run, "metrics", write_or_fail)
        with pytest.raises(PowerFailure):
            run_of("pretrain", "killed", **settings)
    killed = run_of("pretrain", "killed", **settings)
    assert log_of(killed).count("resuming after step 4") == 1
    one, other = ((path / "model.safetensors").read_bytes() for path in (whole, killed))
    assert one == other
    for name in ("chat", "chat_after"):
        assert read(killed).facts[name] == read(whole).facts[name] is not None


def test_measuring_chat_changes_no_weight_no_random_number_and_no_mode(plain: Path):
    checkpoint = Checkpoint.open(plain)
    model, tokenizer = checkpoint.load(torch.float32), checkpoint.tokenizer()
    model.train()
    before = [parameter.clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    found = [measure_chat(model, tokenizer, torch.float32) for _ in range(2)]
    assert found[0] == found[1] is not None and model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_equal_answers_of_data_that_no_ingest_read_are_told(run_of: Callable[..., Path], room: Path):
    rows = [conversation(n, "Sure." if n % 4 else ANSWER) for n in range(60)]
    path = run_of("sft", "sure", data=[str(write_rows(room / "sure rows", rows))], steps=2)
    assert "before the first step: answers-equal: 45 of 60 answers looked at (75.0%) are 'Sure.'" in log_of(path)
    assert "**answers-equal.**" in (path / "run_report.md").read_text()


# GroupMember by side

WORSE, BETTER = Difference(-0.3, -0.4, -0.2), Difference(0.3, 0.2, 0.4)
EQUAL = Difference(0.0, -0.1, 0.1)
ASKED = {"system": 0.0, "tools": 0.0, "median": 30}


def side_by_side(path: Path, differences: dict[tuple[str, str], Difference], **changes: Any) -> ComparisonGroup:
    record = read(path)
    student, plain, start, teacher = (GroupMember(name, record, "tokenizer", "template")
                                      for name in ("student", "plain", "start", "teacher"))  # fmt: skip
    return replace(ComparisonGroup(student, plain, start, teacher, differences, {}, ASKED), **changes)


def test_no_rule_speaks_of_a_student_that_went_well(distilled: Path):
    scores = {("teacher", "plain"): BETTER, ("student", "plain"): BETTER, ("start", "student"): WORSE}
    assert explain(side_by_side(distilled, scores)) == []
    assert explain(side_by_side(distilled, scores, general_differences={("student", "start"): EQUAL})) == []


@pytest.mark.parametrize(("difference", "words"), [(EQUAL, "is not shown to be better"), (WORSE, "is worse than")])
def test_a_teacher_that_is_no_better_is_told(distilled: Path, difference: Difference, words: str):
    for scores in ({("teacher", "plain"): difference}, {("plain", "teacher"): difference.reversed()}):
        finding = comparisons.teacher_not_better(side_by_side(distilled, scores))
        assert finding is not None and words in finding.seen and "points" in finding.seen
    alone = side_by_side(distilled, {("teacher", "start"): BETTER}, baseline=None)
    assert comparisons.teacher_not_better(alone) is None


def test_a_fall_on_general_tasks_is_told(distilled: Path):
    scores = {("student", "start"): BETTER}
    finding = forgetting.forgot_general(
        side_by_side(distilled, scores, general_differences={("start", "student"): BETTER})
    )
    assert finding is not None and "-30.0 points" in finding.seen and "+30.0 points" in finding.seen


def test_tokenizers_and_templates_that_differ_are_told(distilled: Path):
    teacher = GroupMember("teacher", None, "another", "another")
    comparison = side_by_side(distilled, {("teacher", "plain"): BETTER}, teacher=teacher)
    assert {finding.code for finding in explain(comparison)} == {"tokenizer-differs", "chat-differs"}


def test_questions_of_another_form_than_the_training_text_are_told(distilled: Path):
    for asked, words in (({"tools": 1.0}, "100% of the questions have tools"), ({"median": 9_000}, "9,000 tokens")):
        comparison = side_by_side(distilled, {}, questions={**ASKED, **asked})
        finding = comparisons.questions_differ(comparison)
        assert finding is not None and words in finding.seen


def test_a_plain_run_that_saw_more_is_told(run_of: Callable[..., Path], distilled: Path):
    longer = GroupMember("plain", read(run_of("sft", "longer", steps=80)), "tokenizer", "template")
    finding = comparisons.budget_differs(side_by_side(distilled, {}, baseline=longer))
    assert finding is not None and "tokens read: 12,720 against" in finding.seen
    assert comparisons.budget_differs(side_by_side(distilled, {})) is None


def test_every_rule_has_a_reason_that_is_told():
    rules = {rule.__name__.replace("_", "-") for rule in (*RUN_RULES, *COMPARISON_RULES, *START_RULES)}
    assert rules | {"rows-rejected", "data-near-duplicated", "answers-differ"} == set(REASONS)  # told by ingest


def test_a_record_without_facts_or_entropies_is_examined_in_silence(plain: Path):
    record = read(plain)
    rows = [{name: row[name] for name in ("step", "loss", "gradient_norm", "tokens")} for row in record.rows]
    assert examine(Record("sft", {}, rows)) == []
    assert "60 steps" in run_report(Record("sft", {}, rows), [])
    assert examine(Record("sft", {}, [])) == []
