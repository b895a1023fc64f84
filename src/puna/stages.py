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
        "puna.ingest.ingest",
        "raw files",
        "dataset",
        "Turn raw files into documents and conversations",
    ),
    Stage(
        "synthesize",
        "puna.synthesize.synthesize",
        "nothing",
        "dataset",
        "Generate worlds, pages and conversations",
    ),
    Stage(
        "answer",
        "puna.synthesize.answer",
        "questions, a model",
        "dataset",
        "Let a model answer questions, and keep what is good",
    ),
    Stage(
        "import",
        "puna.convert.import_",
        "a model",
        "checkpoint",
        "Take a model in anybody's format in",
    ),
    Stage("tokenizer", "puna.train.tokenizer", "dataset", "tokenizer", "Train a byte-level BPE tokenizer"),
    Stage("pretrain", "puna.train.pretrain", "dataset", "checkpoint", "Train on every token of the text"),
    Stage("sft", "puna.train.sft", "dataset", "checkpoint", "Train on what the assistant says"),
    Stage("label", "puna.train.label", "dataset, teacher", "labels", "Keep what a teacher foresees at each token"),
    Stage(
        "distill",
        "puna.train.distill",
        "labels, or dataset and teacher",
        "checkpoint",
        "Train a student to agree with a teacher",
    ),
    Stage("dpo", "puna.train.dpo", "dataset", "checkpoint", "Train on pairs of answers, one better than the other"),
    Stage("reward", "puna.train.reward", "dataset", "reward model", "Train a model that scores answers"),
    Stage(
        "merge",
        "puna.compress.merge",
        "adapter, checkpoint",
        "checkpoint",
        "Merge an adapter into its base, with receipts",
    ),
    Stage(
        "prune", "puna.compress.prune", "checkpoint", "checkpoint", "Keep the most needed layers, heads and channels"
    ),
    Stage(
        "quantize",
        "puna.compress.quantize",
        "checkpoint",
        "checkpoint",
        "Store weights in 8 or 4 bits, with receipts",
    ),
    Stage("evaluate", "puna.evaluate.evaluate", "checkpoints, tasks", "scores", "Score checkpoints side by side"),
    Stage(
        "export",
        "puna.convert.export",
        "checkpoint",
        "export",
        "Write a checkpoint in the formats of other programs",
    ),
    Stage(
        "release",
        "puna.release.release",
        "checkpoint, scores",
        "release",
        "Judge a model against others, GO or NO-GO, and put together what is handed on",
    ),
)
