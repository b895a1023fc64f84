"""The map: every stage in the order of the data, what it reads and what it writes.

A stage's verb is its module's name (a trailing _ aside), its table in a recipe, its test file and its page in the docs.
"""

from typing import NamedTuple


class Stage(NamedTuple):
    """One row: `puna VERB` calls `run(config, run)` of `module`."""

    verb: str
    module: str
    reads: str
    writes: str
    summary: str


STAGES = (
    Stage(
        "ingest",
        "puna.corpus.ingest.ingest",
        "raw files",
        "dataset",
        "Turn raw files into documents and conversations",
    ),
    Stage(
        "synthesize",
        "puna.corpus.synthesize.synthesize",
        "nothing",
        "dataset",
        "Generate worlds, pages and conversations",
    ),
    Stage(
        "answer",
        "puna.corpus.synthesize.answer",
        "questions, a model",
        "dataset",
        "Let a model answer questions, and keep what is good",
    ),
    Stage(
        "import",
        "puna.conversion.exchange.import_model",
        "a model",
        "checkpoint",
        "Take a model in anybody's format in",
    ),
    Stage("tokenizer", "puna.training.tokenizer", "dataset", "tokenizer", "Train a byte-level BPE tokenizer"),
    Stage("pretrain", "puna.training.pretrain", "dataset", "checkpoint", "Train on every token of the text"),
    Stage("sft", "puna.training.sft", "dataset", "checkpoint", "Train on what the assistant says"),
    Stage("label", "puna.training.label", "dataset, teacher", "labels", "Keep what a teacher foresees at each token"),
    Stage(
        "distill",
        "puna.training.distill",
        "labels, or dataset and teacher",
        "checkpoint",
        "Train a student to agree with a teacher",
    ),
    Stage("dpo", "puna.training.dpo", "dataset", "checkpoint", "Train on pairs of answers, one better than the other"),
    Stage("reward", "puna.training.reward", "dataset", "reward model", "Train a model that scores answers"),
    Stage(
        "merge",
        "puna.conversion.compression.merge",
        "adapter, checkpoint",
        "checkpoint",
        "Merge an adapter into its base, with receipts",
    ),
    Stage(
        "prune",
        "puna.conversion.compression.prune",
        "checkpoint",
        "checkpoint",
        "Keep the most needed layers, heads and channels",
    ),
    Stage(
        "quantize",
        "puna.conversion.compression.quantize",
        "checkpoint",
        "checkpoint",
        "Store weights in 8 or 4 bits, with receipts",
    ),
    Stage(
        "evaluate",
        "puna.evaluation.evaluate.evaluate",
        "checkpoints, tasks",
        "scores",
        "Score checkpoints side by side",
    ),
    Stage(
        "export",
        "puna.conversion.exchange.export",
        "checkpoint",
        "export",
        "Write a checkpoint in the formats of other programs",
    ),
    Stage(
        "release",
        "puna.evaluation.release.release",
        "checkpoint, scores",
        "release",
        "Judge a model against others, GO or NO-GO, and put together what is handed on",
    ),
)
