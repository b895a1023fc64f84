"""Reward modelling: preferences -> the initial model with a head that scores conversations.

The accuracy on held-out pairs is measured after training and written into accuracy.json, with a 95 % interval.
"""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from pydantic import model_validator

from puna.data.dataset import Dataset
from puna.data.preference import Preference
from puna.evaluation.tasks.intervals import score_interval
from puna.evaluation.tasks.reward_model import RewardModel
from puna.formats.chat.format import ChatFormat
from puna.model.reward import become_reward_model
from puna.pipeline.artifacts import artifact
from puna.pipeline.estimate import Estimate, Known
from puna.pipeline.run import Run
from puna.training.fit import fit
from puna.training.loop.start import starting_model
from puna.training.objectives.pairs import count_pairs
from puna.training.objectives.reward import Reward
from puna.training.reports.preview.dry_run import estimate_training, starting_tokenizer
from puna.training.settings import PreferenceConfig


class Config(PreferenceConfig):
    """Settings of reward modelling; the score head and all weights are trained.

    Example:
        [reward]
        init_from = "@sft"
        data = ["build/pairs"]
        validation = ["build/pairs-held-out"]
        epochs = 1
    """

    @model_validator(mode="after")
    def _trains_all_weights(self) -> Self:
        if self.adapter is not None:
            raise ValueError("no adapter: all weights of a reward model are trained")
        return self

    def estimate(self, known: Known) -> Estimate:
        """Estimate steps, time and memory for `puna raise --dry-run`."""
        tokenizer = starting_tokenizer(self, known)
        objective = Reward(ChatFormat(tokenizer), frozenset(self.strengths))
        return estimate_training(self, known, objective, tokenizer)


class Judged(NamedTuple):
    """A held-out pair of answers with prompt and preference strength; `is_right`: the better answer scored higher."""

    is_right: bool
    prompt: str
    strength: str


def run(config: Config, run: Run) -> None:
    """Write a reward model; with validation data also accuracy.json."""
    count_pairs(config, run)
    model, tokenizer = starting_model(config)
    become_reward_model(model, config.seed)
    chat = ChatFormat(tokenizer)
    fit(config, run, Reward(chat, frozenset(config.strengths)), model, tokenizer)
    if config.validation and not run.is_preview:
        judged = _judge(config, run, RewardModel(model, chat))
        strengths = sorted({each.strength for each in judged})
        accuracy = {name: _accuracy([each for each in judged if each.strength == name]) for name in strengths}
        accuracy |= {"all": _accuracy(judged)}
        artifact.write_text(run.output / "accuracy.json", json.dumps(accuracy, indent=2) + "\n")
        summary = "{accuracy:.1%} ({low:.1%} to {high:.1%}) of {num_pairs:,} held-out pairs".format(**accuracy["all"])
        run.log(f"the better answer scores higher in {summary}")


def _judge(config: Config, run: Run, reward_model: RewardModel) -> list[Judged]:
    """Score the answers of every held-out prompt; pairs of all strengths count."""
    dataset, judged, num_too_long = Dataset(config.validation, ["preferences"]), list[Judged](), 0
    with run.progress(len(dataset), "judging held-out pairs", unit="prompts") as bar:
        for index in range(len(dataset)):
            row = dataset[index]
            assert isinstance(row, Preference)
            conversations = [row.answered(answer) for answer, _ in row.ranking()]
            if all(map(reward_model.can_read, conversations)):
                judged += _pairs(row, reward_model.score(conversations))
            else:
                num_too_long += 1
            bar.advance()
    if num_too_long:
        run.log(f"skipped {num_too_long:,} held-out prompts longer than the model's context")
    return judged


def _pairs(row: Preference, scores: list[float]) -> Iterator[Judged]:
    prompt = json.dumps(row.prompt.to_json(), sort_keys=True)
    for rank, (answer, num_outranked) in enumerate(row.ranking()):
        strength = "edited" if answer == row.edited else row.strength or "unknown"
        for score in scores[rank + 1 : rank + 1 + num_outranked]:
            yield Judged(scores[rank] > score, prompt, strength)


def _accuracy(judged: Sequence[Judged]) -> dict[str, float]:
    """Return the accuracy with its interval; the pairs of one prompt form one cluster."""
    interval = score_interval([float(each.is_right) for each in judged], [each.prompt for each in judged])
    num_prompts = len({each.prompt for each in judged})
    bounds = {"accuracy": interval.mean, "low": interval.low, "high": interval.high}
    return {**bounds, "num_pairs": len(judged), "num_prompts": num_prompts}
