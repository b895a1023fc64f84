"""quantization_config of config.json <-> Quantization: the scheme of every quantized matrix.

Supports integer weights (pack-quantized) and float8 rows (float-quantized). Zero points, g_idx, int8 activations and
quantized KV caches change the results and are rejected with a reason. Source: vLLM's compressed-tensors project.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.formats.checkpoint.compressed.patterns import Targets, parse_targets
from puna.formats.checkpoint.fields import Fields
from puna.model.config import LlamaConfig, matrix_shapes
from puna.model.quantization.scheme import Scheme
from puna.pipeline.errors import CheckpointError

METHOD = "compressed-tensors"
PACKED, FLOAT, MIXED = "pack-quantized", "float-quantized", "mixed-precision"
VOCABULARY = ("embed_tokens", "lm_head")
MAX_LAYERS = 10_000
MAX_GROUPS = 64
# Keys without an effect on stored weights.
IRRELEVANT = ("quantization_status", "global_compression_ratio", "version", "run_compressed", "dequantize")
# Unsupported keys, accepted with an empty value.
EMPTY = ("kv_cache_scheme", "sparsity_config", "transform_config", "moe_sparsity_config")
KNOWN = {"quant_method", "format", "config_groups", "ignore", *IRRELEVANT, *EMPTY}


@dataclass(frozen=True)
class Group:
    """Modules with a common scheme."""

    targets: Targets
    scheme: Scheme


@dataclass(frozen=True)
class Quantization:
    """Schemes by target: the most specific target of a module wins, unless the module is ignored.

    Example: see `parse_quantization`.
    """

    path: Path
    groups: tuple[Group, ...]
    ignored: Targets

    def schemes(self, config: LlamaConfig) -> dict[str, Scheme]:
        """Return the scheme of every quantized module; CheckpointError if the group size does not divide a width."""
        if config.num_layers > MAX_LAYERS:
            raise CheckpointError(f"{self.path}: {config.num_layers:,} layers", expected=f"at most {MAX_LAYERS:,}")
        schemes: dict[str, Scheme] = {}
        for path, (_, in_dim) in matrix_shapes(config).items():
            scheme = self._scheme_of(path)
            if scheme is None:
                continue
            if scheme.kind == "float" and path == "embed_tokens":
                raise CheckpointError(
                    f"{self.path}: embeddings in {scheme.name}", expected="integer or unquantized embeddings"
                )
            if not scheme.fits(in_dim):
                raise CheckpointError(
                    f"{self.path}: {path} of {in_dim} inputs in {scheme.name}",
                    expected="a group size that divides the width",
                )
            schemes[path] = scheme
        return schemes

    def _scheme_of(self, path: str) -> Scheme | None:
        name = path if path == "lm_head" else f"model.{path}"
        kind = "Embedding" if path == "embed_tokens" else "Linear"
        if self.ignored.rank(name, kind) is not None:
            return None
        ranked = [(rank, group.scheme) for group in self.groups if (rank := group.targets.rank(name, kind)) is not None]
        return min(ranked, key=lambda match: match[0])[1] if ranked else None


def parse_quantization(raw: dict[str, Any], path: Path) -> Quantization | None:
    """Return the quantization of a config.json, None for unquantized weights.

    Raises:
        CheckpointError: The quantization is not supported.

    Example:
        >>> parse_quantization({}, Path("config.json")) is None
        True
    """
    section = Fields(raw, path).section("quantization_config")
    if section is None:
        return None
    if section.get("quant_method") != METHOD:
        raise section.fail("quant_method", f'"{METHOD}"')
    for key in sorted(section.raw.keys() - KNOWN, key=str):
        raise section.fail(key, f"only {', '.join(sorted(KNOWN))}")
    for key in EMPTY:
        if section.get(key) and section.get(key) != {"format": "dense"}:
            raise section.fail(key, "an empty value: only weights may be quantized, neither sparse nor transformed")
    if section.get("format") not in (PACKED, FLOAT, MIXED):
        raise section.fail("format", f'"{PACKED}" or "{FLOAT}"')
    groups = section.section("config_groups")
    if groups is None or not 0 < len(groups.raw) <= MAX_GROUPS:
        raise section.fail("config_groups", f"one to {MAX_GROUPS} groups")
    parsed = tuple(_parse_group(groups, key, section.get("format")) for key in groups.raw)
    return Quantization(path, parsed, parse_targets(section, "ignore"))


def _parse_group(groups: Fields, key: str, format: str) -> Group:
    group = groups.section(key)
    weights = group.section("weights") if group else None
    if group is None or weights is None:
        raise groups.fail(key, "a group with targets and weights")
    scheme = _parse_weights(weights)
    expected = FLOAT if scheme.kind == "float" else PACKED
    if (group.get("format") or format) != expected:
        raise groups.fail(key, f'{scheme.name} weights with the format "{expected}"')
    if group.get("output_activations") is not None:
        raise group.fail("output_activations", "null: outputs are not quantized")
    inputs = group.section("input_activations")
    if scheme.kind == "int" and inputs is not None:
        raise group.fail("input_activations", "null: activations of integer weights are not quantized")
    if scheme.kind == "float" and not (inputs and _is_float8_a_token(inputs)):
        raise group.fail("input_activations", "float8 with dynamic scales per token")
    return Group(parse_targets(group, "targets"), scheme)


def _parse_weights(weights: Fields) -> Scheme:
    kind, bits, strategy = weights.get("type"), weights.get("num_bits"), weights.get("strategy")
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)) or type(bits) is not int:
        raise weights.fail("num_bits", "int with 4 or 8 bits, or float with 8")
    if weights.get("symmetric") is not True:
        raise weights.fail("symmetric", "true: weights with zero points are not supported")
    if weights.get("actorder") not in (None, False, "weight", "static"):
        raise weights.fail("actorder", 'null or "weight": reordered columns (g_idx) are not supported')
    if weights.get("dynamic") not in (None, False):
        raise weights.fail("dynamic", "false: stored weights have static scales")
    if weights.get("block_structure") is not None:
        raise weights.fail("block_structure", "null: scales belong to rows or groups of a row")
    if strategy == "group" and kind == "int":
        return Scheme("int", bits, weights.integer("group_size"))
    if strategy != "channel" or weights.get("group_size") not in (None, -1):
        raise weights.fail("strategy", '"channel" without a group_size' + (', or "group"' if kind == "int" else ""))
    return Scheme(kind, bits)


def _is_float8_a_token(inputs: Fields) -> bool:
    expected = {"type": "float", "num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}
    return all(inputs.get(key) == value for key, value in expected.items())


def render_quantization(schemes: Mapping[str, Scheme], config: LlamaConfig) -> dict[str, Any]:
    """Return quantization_config for the schemes of a model's modules.

    The most frequent scheme targets all linear layers ("Linear", with ignored modules); other schemes target modules by
    name.
    """
    linears = [path for path in matrix_shapes(config) if path not in VOCABULARY]
    counted = Counter(schemes[path] for path in linears if path in schemes)
    main = counted.most_common(1)[0][0] if counted else next(iter(schemes.values()))
    targets: dict[Scheme, list[str]] = {main: ["Linear"] if counted else []}
    for path, scheme in schemes.items():
        if path in VOCABULARY:
            targets.setdefault(scheme, []).append(f"re:.*{path}$")
        elif scheme != main:
            targets.setdefault(scheme, []).append(f"model.{path}")
    # NOTE: transformers with `dequantize=True` unpacks every weight with the first group's scheme. With the most bits
    # first, transformers rejects the other groups; with int4 first, an int8 head would be unpacked wrongly.
    targets = dict(sorted(targets.items(), key=lambda item: (-item[0].bits, item[0].group_size or math.inf)))
    formats = {_format_of(scheme) for scheme in targets}
    groups = {
        f"group_{index}": _render_group(scheme, named, is_mixed=len(formats) > 1)
        for index, (scheme, named) in enumerate(targets.items())
    }
    rendered = {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [*(f"model.{path}" for path in linears if path not in schemes), *_ignored_head(schemes)],
        "kv_cache_scheme": None,
    }
    # NOTE: transformers cannot build packed embeddings, but can dequantize on loading. That is correct for a single
    # scheme only: transformers uses the first scheme for all weights, with silently wrong logits.
    is_unpacked = "embed_tokens" in schemes and len(groups) == 1
    return rendered | ({"dequantize": True} if is_unpacked else {})


def _ignored_head(schemes: Iterable[str]) -> list[str]:
    return [] if "lm_head" in schemes else ["lm_head"]


def _format_of(scheme: Scheme) -> str:
    return FLOAT if scheme.kind == "float" else PACKED


def _render_group(scheme: Scheme, targets: list[str], *, is_mixed: bool) -> dict[str, Any]:
    weights = {
        "num_bits": scheme.bits,
        "type": scheme.kind,
        "symmetric": True,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
    }
    inputs = weights | {"strategy": "token", "dynamic": True} if scheme.kind == "float" else None
    group: dict[str, Any] = {
        "targets": targets,
        "weights": weights,
        "input_activations": inputs,
        "output_activations": None,
    }
    return group | ({"format": _format_of(scheme)} if is_mixed else {})
