"""The stage table: every stage in the order of the data, with the kinds of inputs and outputs.

The verb of a stage also names the stage's table in a recipe, the test file and the documentation page.
"""

from typing import NamedTuple

# Kinds of artifacts, as `manifest.json` spells them; "raw" stands for files and folders without a manifest.
KINDS = {
    "raw": "files that no stage wrote: documents, question files, a model's folder",
    "dataset": "documents, conversations, questions or preferences",
    "tokenizer": "a byte-level BPE tokenizer",
    "checkpoint": "weights, config and tokenizer of a Llama",
    "adapter": "a LoRA adapter in PEFT's layout",
    "reward model": "a Llama with a score instead of logits",
    "labels": "the teacher's most likely tokens at every position, with the labelled rows as a dataset",
    "scores": "answers of several checkpoints with their grades",
    "export": "a checkpoint in the layout of another program",
    "release": "a checkpoint with the verdict of the gate, licences and model card",
}


class Stage(NamedTuple):
    """Row of the stage table: `puna VERB` calls `run(config, run)` of a module.

    Attributes:
        verb: Name on the command line and in a recipe.
        file: File of the stage within the package, without ".py".
        reads: Kinds of inputs, over all path settings of the stage.
        writes: Kinds of outputs, the usual kind first.
        summary: Line of `puna --help`.

    Example:
        >>> next(stage for stage in STAGES if stage.verb == "sft").module
        'puna.training.sft'
    """

    verb: str
    file: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    summary: str

    @property
    def module(self) -> str:
        """Dotted name of the module."""
        return f"puna.{self.file.replace('/', '.')}"


# A label artifact is also a dataset: the labelled rows lie beside the labels.
TEXT = ("raw", "dataset", "labels")
MODEL = ("raw", "checkpoint", "release")
ADAPTED = (*MODEL, "adapter")
MODEL_TEXT, ADAPTED_TEXT = (*TEXT, *MODEL), (*TEXT, *ADAPTED)
TRAINING = (*ADAPTED_TEXT, "tokenizer")
SCORING = (*ADAPTED_TEXT, "scores", "reward model")

DATA, MODELS, TRAINED = ("dataset",), ("checkpoint",), ("checkpoint", "adapter")

# fmt: off
STAGES = (
    Stage("ingest", "corpus/ingest/ingest", TEXT, DATA, "Turn raw files into documents and conversations"),
    Stage("synthesize", "corpus/synthesize/synthesize", (), DATA, "Generate worlds, pages and conversations"),
    Stage("answer", "corpus/synthesize/answer", SCORING, DATA, "Answer questions with a model, and keep good answers"),
    Stage("import", "conversion/exchange/import_model", (*ADAPTED, "export"), MODELS, "Import a model of any format"),
    Stage("tokenizer", "training/tokenizer", TEXT, ("tokenizer",), "Train a byte-level BPE tokenizer"),
    Stage("pretrain", "training/pretrain", TRAINING, TRAINED, "Train on every token of documents"),
    Stage("sft", "training/sft", TRAINING, TRAINED, "Fine-tune on the assistant's messages of conversations"),
    Stage("label", "training/label", ADAPTED_TEXT, ("labels",), "Store a teacher's most likely tokens by position"),
    Stage("distill", "training/distill", TRAINING, TRAINED, "Train a student to match a teacher"),
    Stage("dpo", "training/dpo", TRAINING, TRAINED, "Train on preferences: pairs of a better and a worse answer"),
    Stage("reward", "training/reward", TRAINING, ("reward model",), "Train a reward model that scores answers"),
    Stage("merge", "conversion/compression/merge", ADAPTED_TEXT, MODELS, "Merge an adapter into its base"),
    Stage("prune", "conversion/compression/prune", MODEL_TEXT, MODELS, "Remove layers, heads and channels"),
    Stage("quantize", "conversion/compression/quantize", MODEL_TEXT, MODELS, "Store weights in 8 or 4 bits"),
    Stage("evaluate", "evaluation/evaluate/evaluate", SCORING, ("scores",), "Score checkpoints side by side"),
    Stage("export", "conversion/exchange/export", MODEL_TEXT, ("export",), "Write formats of other programs"),
    Stage("release", "evaluation/release/release", (*ADAPTED, "scores"), ("release",), "Judge a model, GO or NO-GO"),
)
