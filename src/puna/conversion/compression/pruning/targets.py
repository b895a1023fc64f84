"""Settings of a pruning target -> sizes: a published size, given widths, or a search within a parameter budget.

The search takes measured divergences of single pruning steps as curves; nothing is measured here.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise, product
from typing import Literal

from pydantic import Field

from puna.model.config import SIZES, LlamaConfig
from puna.pipeline.config import StageConfig, suggestion
from puna.pipeline.errors import ConfigError

# Smallest share of a width that a search considers; divergences below are not measured.
LEAST_SHARE = 0.25
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
# (number of parts, KL divergence with this number of parts), in ascending order.
Curve = list[tuple[int, float]]
HeadCut = Literal["groups", "within"]


class Shape(StageConfig):
    """Table of target widths of `puna prune`; a width without a value stays as in the parent.

    Example:
        size = { num_layers = 16, hidden_dim = 4096 }
    """

    dim: int | None = Field(default=None, ge=2, description="Target width of the residual stream")
    hidden_dim: int | None = Field(default=None, ge=1, description="Target number of hidden channels in the MLP")
    num_layers: int | None = Field(default=None, ge=1, description="Target number of transformer layers")
    num_heads: int | None = Field(default=None, ge=1, description="Target number of query heads")
    num_kv_heads: int | None = Field(default=None, ge=1, description="Target number of key/value heads")
    head_dim: int | None = Field(default=None, ge=2, description="Target width of a head; a divisor of the parent's")
    tie_embeddings: bool | None = Field(
        default=None, description="Whether one table serves as embeddings and as output head"
    )


def target_size(parent: LlamaConfig, size: str | Shape) -> LlamaConfig:
    """Return the sizes of a published model or of a table of widths, with the parent's vocabulary, context and RoPE.

    Raises:
        ConfigError: A width is larger than the parent's, or the size has an unknown name.

    Example:
        >>> target_size(SIZES["8b"], Shape(num_layers=16)).num_layers
        16
    """
    if isinstance(size, Shape):
        shape = size
    elif size in SIZES:
        shape = Shape(**{name: getattr(SIZES[size], name) for name in Shape.model_fields})
    else:
        expected = f"{', '.join(SIZES)}, or a table of widths"
        raise ConfigError(f"size = '{size}'", expected=expected, hint=suggestion(size, list(SIZES)))
    target = replace(parent, **{name: value for name, value in shape if value is not None})
    _require_within(parent, target)
    return target


def parse_count(text: str | int) -> int:
    """Parse a number of parameters.

    Example:
        >>> parse_count("1.2b")
        1200000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb]?)", str(text).strip().lower().replace("_", "").replace(",", ""))
    if match is None or not float(match[1]):
        raise ConfigError(f"parameters = {text!r}", expected='a number such as 1_000_000, "350m" or "1.2b"')
    return round(float(match[1]) * UNITS[match[2]])


def _require_within(parent: LlamaConfig, target: LlamaConfig) -> None:
    for name in ("num_layers", "dim", "hidden_dim", "num_heads", "num_kv_heads", "head_dim"):
        width, limit = getattr(target, name), getattr(parent, name)
        if width > limit:
            raise ConfigError(
                f"{name} = {width:,}",
                expected=f"at most the parent's {limit:,}",
                hint="Pruning removes parts; train a larger network from scratch",
            )
    shared, most = (config.num_heads // config.num_kv_heads for config in (target, parent))
    if shared > most:
        raise ConfigError(
            f"{target.num_heads} heads for {target.num_kv_heads} key/value heads",
            expected=f"at most {most} query heads for a key/value head, as in the parent",
            hint="A query head only knows the keys of its group: groups can lose query heads, not gain any",
        )
    if parent.head_dim % target.head_dim:
        raise ConfigError(
            f"head_dim = {target.head_dim}",
            expected=f"a divisor of the parent's {parent.head_dim}",
            hint="Otherwise the narrower head would get rotary frequencies that the weights were not trained with",
        )


def counts(parent: LlamaConfig, heads: HeadCut, multiple: int) -> dict[str, list[int]]:
    """Return the numbers of layers, heads and channels that a search considers, in ascending order, by kind."""
    shared = parent.num_heads // parent.num_kv_heads
    return {
        "layers": _steps(parent.num_layers, 1),
        "heads": _steps(parent.num_kv_heads if heads == "groups" else shared, 1),
        "hidden channels": _steps(parent.hidden_dim, multiple),
        "model width": _steps(parent.dim, multiple),
    }


def resized(parent: LlamaConfig, heads: HeadCut, count: Mapping[str, int]) -> LlamaConfig:
    """Return the parent's sizes with `count` parts of a kind; other kinds stay."""
    shared, groups = parent.num_heads // parent.num_kv_heads, parent.num_kv_heads
    if "heads" in count:
        shared, groups = (shared, count["heads"]) if heads == "groups" else (count["heads"], groups)
    return replace(
        parent,
        num_layers=count.get("layers", parent.num_layers),
        num_heads=shared * groups,
        num_kv_heads=groups,
        hidden_dim=count.get("hidden channels", parent.hidden_dim),
        dim=count.get("model width", parent.dim),
    )


def measured_counts(all_counts: list[int]) -> list[int]:
    """Return the counts to measure: nearest to a quarter, a half and three quarters of all.

    Example:
        >>> measured_counts([2, 3, 4, 5, 6, 7, 8])
        [2, 4, 6]
    """
    shares = (all_counts[-1] * share for share in (0.25, 0.5, 0.75))
    near = {min(all_counts[:-1], key=lambda count: abs(count - share)) for share in shares} if all_counts[1:] else set()
    return sorted(near)


def require_reachable(parent: LlamaConfig, most: int, heads: HeadCut, multiple: int) -> None:
    """Raise ConfigError if `most` is no smaller than the parent, or needs a width below LEAST_SHARE."""
    least = resized(parent, heads, {kind: steps[0] for kind, steps in counts(parent, heads, multiple).items()})
    if not least.num_parameters <= most < parent.num_parameters:
        raise ConfigError(
            f"parameters = {most:,}",
            expected=f"{least.num_parameters:,} to {parent.num_parameters - 1:,} for this model",
            hint="For less than a quarter of a width, set the widths with size",
        )


def best_size(
    parent: LlamaConfig, most: int, heads: HeadCut, multiple: int, curves: Mapping[str, Curve]
) -> tuple[LlamaConfig, float]:
    """Return the sizes with at most `most` parameters and the lowest predicted divergence, with the prediction.

    A prediction adds up the divergences of all kinds, interpolated linearly between measured counts. Model widths
    that the number of heads does not divide are avoided if possible: transformers refuses such widths.
    """
    possible = counts(parent, heads, multiple)
    costs = {kind: {count: _cost(curves[kind], count) for count in steps} for kind, steps in possible.items()}
    fitting = list(_fitting(parent, most, heads, possible))
    loadable = [count for count in fitting if _is_loadable(resized(parent, heads, count))]
    best = min(
        loadable or fitting,
        key=lambda count: (sum(costs[kind][number] for kind, number in count.items()), *(-n for n in count.values())),
    )
    return resized(parent, heads, best), sum(costs[kind][number] for kind, number in best.items())


def _is_loadable(size: LlamaConfig) -> bool:
    return size.dim % size.num_heads == 0


def _fitting(
    parent: LlamaConfig, most: int, heads: HeadCut, possible: Mapping[str, list[int]]
) -> Iterator[dict[str, int]]:
    """Yield counts of layers, heads and model width, with the largest number of hidden channels within the budget."""
    hidden = possible["hidden channels"]
    others = {kind: steps for kind, steps in possible.items() if kind != "hidden channels"}
    for numbers in product(*others.values()):
        count = dict(zip(others, numbers, strict=True))
        size = resized(parent, heads, count)
        channel = 3 * size.dim * size.num_layers
        room = (most - (size.num_parameters - channel * size.hidden_dim)) // channel
        if room >= hidden[0]:
            yield {kind: count.get(kind, hidden[bisect_right(hidden, room) - 1]) for kind in possible}


def _steps(whole: int, multiple: int) -> list[int]:
    """Return the multiples between LEAST_SHARE of a width and the width, and the width itself."""
    first = max(multiple, -(-int(whole * LEAST_SHARE) // multiple) * multiple)
    return [*range(first, whole, multiple), whole]


def _cost(curve: Curve, count: int) -> float:
    for (few, cost_of_few), (many, cost_of_many) in pairwise(curve):
        if few <= count <= many:
            return cost_of_few + (cost_of_many - cost_of_few) * (count - few) / (many - few)
    # Rounding to multiples can give a count below the measured counts.
    return curve[0][1]


Measure = Callable[[LlamaConfig], float]


def measure_curves(parent: LlamaConfig, heads: HeadCut, multiple: int, measure: Measure) -> dict[str, Curve]:
    """Return the divergence curve of every kind of pruning alone; `measure` gives the divergence of a network.

    Curves are monotone: fewer parts never have a lower divergence.
    """
    curves: dict[str, Curve] = {}
    for kind, steps in counts(parent, heads, multiple).items():
        curve: Curve = [(steps[-1], 0.0)]
        for count in reversed(measured_counts(steps)):
            curve.insert(0, (count, max(curve[0][1], measure(resized(parent, heads, {kind: count})))))
        curves[kind] = curve
    return curves
