"""What a pruned model shall be -> its sizes: a published shape, widths, or the least harmful ones for a number of
parameters.

Measures nothing: what each kind of cut costs is handed in.
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

# What may be left of each width at least when a number of parameters decides: what costs less was not measured.
LEAST_SHARE = 0.25
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
# (count, by how much the loss grows with so many), from few to all.
Curve = list[tuple[int, float]]
HeadCut = Literal["groups", "within"]


class Shape(StageConfig):
    """Widths after pruning; what is not given stays as it is."""

    dim: int | None = Field(default=None, ge=2, description="model width")
    hidden_dim: int | None = Field(default=None, ge=1, description="width inside the MLP")
    num_layers: int | None = Field(default=None, ge=1, description="transformer blocks")
    num_heads: int | None = Field(default=None, ge=1, description="query heads")
    num_kv_heads: int | None = Field(default=None, ge=1, description="key and value heads")
    head_dim: int | None = Field(default=None, ge=2, description="width of a head")
    tie_embeddings: bool | None = Field(default=None, description="one matrix for input and output embeddings")


def target_size(parent: LlamaConfig, size: str | Shape) -> LlamaConfig:
    """Return the sizes that are asked for; ConfigError if they are not within the parent's.

    Vocabulary, context, RoPE and norms stay the parent's, whatever the published model of that shape has.
    """
    if isinstance(size, Shape):
        asked = size
    elif size in SIZES:
        asked = Shape(**{name: getattr(SIZES[size], name) for name in Shape.model_fields})
    else:
        expected = f"{', '.join(SIZES)}, or a table of widths"
        raise ConfigError(f"size = '{size}'", expected=expected, hint=suggestion(size, list(SIZES)))
    target = replace(parent, **{name: value for name, value in asked if value is not None})
    _require_within(parent, target)
    return target


def parse_count(text: str | int) -> int:
    """Read a number of parameters: 1_000_000, "350m", "1.2b"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb]?)", str(text).strip().lower().replace("_", "").replace(",", ""))
    if found is None or not float(found[1]):
        raise ConfigError(f"parameters = {text!r}", expected='a number such as 1_000_000, "350m" or "1.2b"')
    return round(float(found[1]) * UNITS[found[2]])


def _require_within(parent: LlamaConfig, target: LlamaConfig) -> None:
    for name in ("num_layers", "dim", "hidden_dim", "num_heads", "num_kv_heads", "head_dim"):
        given, most = getattr(target, name), getattr(parent, name)
        if given > most:
            raise ConfigError(
                f"{name} = {given:,}",
                expected=f"at most the parent's {most:,}",
                hint="Pruning takes parts away; train what is larger from scratch",
            )
    shared, most = (config.num_heads // config.num_kv_heads for config in (target, parent))
    if shared > most:
        raise ConfigError(
            f"{target.num_heads} heads for {target.num_kv_heads} key/value heads",
            expected=f"at most {most} for each, as many as share one in the parent",
            hint="A query head was trained on the keys of its own group, so groups can lose heads but gain none",
        )
    if parent.head_dim % target.head_dim:
        raise ConfigError(
            f"head_dim = {target.head_dim}",
            expected=f"a divisor of the parent's {parent.head_dim}",
            hint="Only then are the rotary frequencies of the narrower head among those that its weights know",
        )


def counts(parent: LlamaConfig, heads: HeadCut, multiple: int) -> dict[str, list[int]]:
    """Return how many layers, heads of the kind that goes, channels may be left, from few to all."""
    shared = parent.num_heads // parent.num_kv_heads
    return {
        "layers": _steps(parent.num_layers, 1),
        "heads": _steps(parent.num_kv_heads if heads == "groups" else shared, 1),
        "hidden channels": _steps(parent.hidden_dim, multiple),
        "model width": _steps(parent.dim, multiple),
    }


def resized(parent: LlamaConfig, heads: HeadCut, count: Mapping[str, int]) -> LlamaConfig:
    """Return the parent with so many of each kind; what is not named stays."""
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
    """Return the counts at which a cut is measured: near three quarters, a half and a quarter of all."""
    shares = (all_counts[-1] * share for share in (0.25, 0.5, 0.75))
    near = {min(all_counts[:-1], key=lambda count: abs(count - share)) for share in shares} if all_counts[1:] else set()
    return sorted(near)


def require_reachable(parent: LlamaConfig, most: int, heads: HeadCut, multiple: int) -> None:
    """Raise ConfigError unless so many parameters are fewer than the parent's and a quarter of each width fits."""
    least = resized(parent, heads, {kind: steps[0] for kind, steps in counts(parent, heads, multiple).items()})
    if not least.num_parameters <= most < parent.num_parameters:
        raise ConfigError(
            f"parameters = {most:,}",
            expected=f"{least.num_parameters:,} to {parent.num_parameters - 1:,} for this model",
            hint="Below a quarter of a width say yourself what shall be left, with size",
        )


def best_size(
    parent: LlamaConfig, most: int, heads: HeadCut, multiple: int, curves: Mapping[str, Curve]
) -> tuple[LlamaConfig, float]:
    """Return the sizes with at most so many parameters whose cuts cost least together, and what they cost.

    A cost between two measured ones is read off the line between them, and the costs of several kinds are added up.
    Model widths that are no multiple of the number of heads are left out if possible: transformers refuses them,
    whatever head_dim says.
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
    """Yield every choice of layers, heads and model width with as many hidden channels as there is room for."""
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
    """Return the multiples from the least share of a width up to it, and the width itself."""
    first = max(multiple, -(-int(whole * LEAST_SHARE) // multiple) * multiple)
    return [*range(first, whole, multiple), whole]


def _cost(curve: Curve, count: int) -> float:
    for (few, cost_of_few), (many, cost_of_many) in pairwise(curve):
        if few <= count <= many:
            return cost_of_few + (cost_of_many - cost_of_few) * (count - few) / (many - few)
    # Fewer than were measured, as the rounding to multiples may have it.
    return curve[0][1]


Measure = Callable[[LlamaConfig], float]


def measure_curves(parent: LlamaConfig, heads: HeadCut, multiple: int, measure: Measure) -> dict[str, Curve]:
    """Return for each kind what its cuts cost, by `measure` of the sizes with that cut alone; never less for more."""
    curves: dict[str, Curve] = {}
    for kind, steps in counts(parent, heads, multiple).items():
        curve: Curve = [(steps[-1], 0.0)]
        for count in reversed(measured_counts(steps)):
            curve.insert(0, (count, max(curve[0][1], measure(resized(parent, heads, {kind: count})))))
        curves[kind] = curve
    return curves
