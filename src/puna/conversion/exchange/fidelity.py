"""Comparisons of an export -> receipts: equal settings and tokens, and equal predictions in another program.

Settings and tokens must be equal: a wrong epsilon or RoPE base can change logits less than rounding. Differences of
logits are relative to the logits' standard deviation, since rounding errors grow with the multiplied values.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple

from puna.data.pieces import PROBES
from puna.formats.checkpoint.source import Source
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.model.compare import Comparison
from puna.pipeline.artifacts.artifact import Receipt
from puna.pipeline.config import Precision
from puna.pipeline.errors import TokenizerError

# Metadata of GGUF holds float32 numbers.
FLOAT32_STEP = 1e-6
SETTINGS = (
    "dim", "hidden_dim", "head_dim", "num_layers", "num_heads", "num_kv_heads", "vocab_size", "norm_eps", "rope_theta"
)  # fmt: skip


class Tolerance(NamedTuple):
    """Rounding that two correct programs may differ by.

    Attributes:
        difference: most root mean square difference of logits, as a share of the logits' standard deviation.
        agreement: least share of tokens with the same most likely next token, ties within rounding left out.

    Example:
        >>> Tolerance(0.03, 0.97).beside(Tolerance(0.04, 0.95))
        Tolerance(difference=0.05, agreement=0.95)
    """

    difference: float
    agreement: float

    def kl(self, deviation: float) -> float:
        """Return the KL divergence, in nats per token, of logits with a difference of `difference` * `deviation`.

        To second order a difference d of logits costs KL = Var(d) / 2, the variance taken over the distribution.
        """
        return (self.difference * deviation) ** 2 / 2

    def tie(self, deviation: float) -> float:
        """Return the largest gap, in nats, between two logits that rounding can swap: both move by `difference`."""
        return 2 * self.difference * deviation

    def beside(self, other: "Tolerance") -> "Tolerance":
        """Return the tolerance where both programs round: independent errors add in squares."""
        return Tolerance(math.hypot(self.difference, other.difference), min(self.agreement, other.agreement))


# Three to four times the rounding that was measured (docs/stages/export.md). llama.cpp rounds activations before a
# product: to float16 or bfloat16 as the weights are, to int8 in blocks of 32 where the weights are blocks.
SAME_PRECISION = {"float32": Tolerance(1e-4, 0.999), "bfloat16": Tolerance(0.03, 0.97)}
LLAMA_CPP = {"F32": Tolerance(1e-4, 0.999), "F16": Tolerance(2e-3, 0.99), "BF16": Tolerance(0.01, 0.97)}
LLAMA_CPP |= {"Q8_0": Tolerance(0.04, 0.97), "Q4_0": Tolerance(0.04, 0.95)}


def peer_tolerance(precision: Precision, kind: str | None) -> Tolerance:
    """Return the tolerance between Puna in `precision` and a peer: llama.cpp for a GGUF `kind`, else the same dtype.

    Example:
        >>> peer_tolerance("bfloat16", None)
        Tolerance(difference=0.03, agreement=0.97)
    """
    ours = SAME_PRECISION[precision]
    return ours if kind is None else ours.beside(LLAMA_CPP[kind])


def peer_receipts(comparison: Comparison, peer: str, tolerance: Tolerance, details: dict[str, str]) -> list[Receipt]:
    """Return receipts for equal predictions of another program and of Puna on the written files."""
    parent, kl, deviation = f"{peer} against Puna", comparison.kl(), comparison.deviation()
    difference, most_kl = comparison.difference(), tolerance.kl(deviation)
    agreement = comparison.agreement_beyond(tolerance.tie(deviation))
    measured = details | {"deviation": deviation, "max_difference": comparison.max_difference()}
    unit = {"unit": "root mean square difference of logits / their standard deviation"}
    is_near = difference <= tolerance.difference
    return [
        Receipt("peer_difference", parent, difference, tolerance.difference, is_near, measured | unit),
        Receipt("peer_kl", parent, kl["mean"], most_kl, kl["mean"] <= most_kl, details | kl),
        Receipt(
            "peer_top1_agreement",
            parent,
            agreement,
            tolerance.agreement,
            agreement >= tolerance.agreement,
            details | {"tie": tolerance.tie(deviation), "same": comparison.agreement()},
            is_least=True,
        ),
    ]


def reread_receipt(name: str, source: Source, written: Source) -> Receipt:
    """Return the receipt for equal settings, RoPE, tokens and stop tokens in the files and in checkpoint `name`."""
    differing = list(_differing(source, written))
    details = {"unit": "settings and tokens that differ", "differing": differing[:20]}
    if differing:
        details["reasons"] = differing[:3]
        details["hint"] = "Report this bug of puna export: no program can read these files correctly"
    return Receipt("reread", name, len(differing), 0, not differing, details)


def _differing(source: Source, written: Source) -> Iterator[str]:
    before, after = asdict(source.config), asdict(written.config)
    for name in SETTINGS:
        if not math.isclose(before[name], after[name], rel_tol=FLOAT32_STEP):
            yield f"{name} is {after[name]} in the files, {before[name]} in the checkpoint"
    if before["rope_scaling"] != after["rope_scaling"]:
        yield f"rope_scaling is {after['rope_scaling']} in the files, {before['rope_scaling']} in the checkpoint"
    if source.tokenizer is None or written.tokenizer is None:
        yield "the tokenizer is missing"
        return
    yield from _differing_tokens(source.tokenizer, written.tokenizer)
    # Some formats cannot store additional stop tokens.
    if written.stop_ids and set(source.other_stop_ids) - set(written.stop_ids):
        yield f"stop tokens are {list(written.stop_ids)} in the files, {list(source.stop_ids)} in the checkpoint"


def _differing_tokens(before: Tokenizer, after: Tokenizer) -> Iterator[str]:
    for index in range(max(before.vocab_size, after.vocab_size)):
        old, new = _token(before, index), _token(after, index)
        if old != new:
            yield f"token {index} is {new} in the files, {old} in the checkpoint"
    # Put text tokens inside words: a tokenizer without the token would split the word elsewhere.
    for text in (*PROBES, *(f"a{token.text}b {token.text}" for token in before.text_tokens)):
        if before.encode(text) != after.encode(text):
            yield f"{text!r} is read as other tokens"


def _token(tokenizer: Tokenizer, index: int) -> str:
    try:
        text = ascii(tokenizer.decode_bytes([index]))[1:]
    except TokenizerError:
        return "missing"
    if tokenizer.is_special(index):
        return f"the special token {text}"
    is_added = any(token.id == index for token in tokenizer.text_tokens)
    return f"the text token {text}" if is_added else text
