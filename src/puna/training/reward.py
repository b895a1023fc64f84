"""Preferences -> a reward model: the network that training begins with, and a head that scores a conversation.

What it has learned is measured on held-out pairs, and written beside it with its interval.
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
from puna.training.loop.loop import train
from puna.training.loop.start import starting_model
from puna.training.objectives.pairs import count_pairs
from puna.training.objectives.reward import Reward
from puna.training.reports.preview.dry_run import estimate_training, starting_tokenizer
from puna.training.settings import PreferenceConfig


class Config(PreferenceConfig):
    """Train a head that scores, and the network below it, on pairs of answers."""

    @model_validator(mode="after")
    def _trains_all_weights(self) -> Self:
        if self.adapter is not None:
            raise ValueError("no adapter: a reward model is trained and written as a whole")
        return self

    def estimate(self, known: Known) -> Estimate:
        """Foresee a run of these settings (training/reports/preview/dry_run.py)."""
        tokenizer = starting_tokenizer(self, known)
        objective = Reward(ChatFormat(tokenizer), frozenset(self.strengths))
        return estimate_training(self, known, objective, tokenizer)


class Judged(NamedTuple):
    """A pair of held-out answers: whether the better one scored higher, of which prompt, and how sure people were."""

    is_right: bool
    prompt: str
    strength: str


def run(config: Config, run: Run) -> None:
    """Write a reward model, and accuracy.json where there is validation data."""
    count_pairs(config, run)
    model, tokenizer = starting_model(config)
    become_reward_model(model, config.seed)
    chat = ChatFormat(tokenizer)
    train(config, run, Reward(chat, frozenset(config.strengths)), model, tokenizer)
    if config.validation:
        judged = _judge(config, run, RewardModel(model, chat))
        strengths = sorted({each.strength for each in judged})
        accuracy = {name: _accuracy([each for each in judged if each.strength == name]) for name in strengths}
        accuracy |= {"all": _accuracy(judged)}
        artifact.write_text(run.output / "accuracy.json", json.dumps(accuracy, indent=2) + "\n")
        told = "{accuracy:.1%} ({low:.1%} to {high:.1%}) of {num_pairs:,} held-out pairs".format(**accuracy["all"])
        run.log(f"the better answer scores higher in {told}")


def _judge(config: Config, run: Run, reward_model: RewardModel) -> list[Judged]:
    """Score the answers of every held-out prompt; pairs of all strengths count, each reported as what it is."""
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
        run.log(f"passed over held-out prompts longer than the model's context: {num_too_long:,}")
    return judged


def _pairs(row: Preference, scores: list[float]) -> Iterator[Judged]:
    prompt = json.dumps(row.prompt.to_json(), sort_keys=True)
    for place, (answer, num_outranked) in enumerate(row.ranking()):
        strength = "edited" if answer == row.edited else row.strength or "unknown"
        for score in scores[place + 1 : place + 1 + num_outranked]:
            yield Judged(scores[place] > score, prompt, strength)


def _accuracy(judged: Sequence[Judged]) -> dict[str, float]:
    """Return the share of pairs judged right and its interval; pairs of one prompt are one group."""
    interval = score_interval([float(each.is_right) for each in judged], [each.prompt for each in judged])
    num_prompts = len({each.prompt for each in judged})
    bounds = {"accuracy": interval.mean, "low": interval.low, "high": interval.high}
    return {**bounds, "num_pairs": len(judged), "num_prompts": num_prompts}
