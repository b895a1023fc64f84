"""One contestant of train.py in a process of its own: a line on standard input -> one step, and what it took.

Both draw their weights by the same rule (not the same numbers) and read the same tokens. A teacher has the student's
own shape, in bfloat16.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SEED, LEARNING_RATE, RANK, MAX_STEPS = 7, 1e-4, 16, 1000
DISTILLS = ("distill", "labels")


def memory(name: str) -> int:
    """Return this process's resident memory now (VmRSS) or at most (VmHWM), or that of its GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() if name == "VmHWM" else torch.cuda.memory_allocated()
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def examples(told: dict[str, Any], count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(told["widths"]["vocab_size"], (count, told["context"]), generator=generator)


def labels(told: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return labels for one batch's tokens, 64 entries each, as `puna label` keeps them."""
    num_tokens, vocab_size = told["batch"] * told["context"], told["widths"]["vocab_size"]
    generator = torch.Generator().manual_seed(SEED)
    top = torch.randn(num_tokens, 65, generator=generator).sort(descending=True).values.log_softmax(-1).half()
    starts = torch.randint(vocab_size, (num_tokens, 1), dtype=torch.int32, generator=generator)
    ids = (starts + torch.arange(64, dtype=torch.int32) * (vocab_size // 64)) % vocab_size
    columns = {"top_ids": ids, "top": top[:, :64], "tail": top[:, 64], "chosen": top[:, 0]}
    return {name: rows.to(told["device"]) for name, rows in columns.items()}


class Clock:
    """Waits for the word before each step, and says afterwards what it took."""

    def __init__(self, about: str, before: int):
        self.before, self.wall, self.processor = before, 0.0, 0.0
        print(json.dumps({"ready": about}), flush=True)

    def begin(self) -> None:
        if not sys.stdin.readline():
            sys.exit()
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def end(self, loss: float) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken = {"seconds": time.perf_counter() - self.wall, "processor": time.process_time() - self.processor}
        print(json.dumps(taken | {"loss": loss, "peak": memory("VmHWM"), "before": self.before}), flush=True)


def run_puna(told: dict[str, Any]) -> None:
    """Take the steps of `puna sft`, `puna sft --adapter.rank 16` or `puna distill`, of either kind: the loop's own."""
    from puna.data.packing import Batch
    from puna.formats.tokenizer.train import train_tokenizer
    from puna.model.adapters.adapted import AdapterShape, add_adapter
    from puna.model.config import LlamaConfig
    from puna.model.llama import Llama
    from puna.training import distill, sft
    from puna.training.loop import loop
    from puna.training.loop.counts import TokenCounter
    from puna.training.loop.start import recompute_blocks
    from puna.training.loop.state import TrainState
    from puna.training.objectives.distillation.divergence import Divergence
    from puna.training.objectives.distillation.live_teacher import LiveTeacher
    from puna.training.objectives.distillation.stored_labels import StoredLabels
    from puna.training.objectives.next_token import NextToken
    from puna.training.parallel.team import Team

    tokenizer = train_tokenizer(["some words and more words"] * 2, vocab_size=520, split_digits=False)
    before, widths, length = memory("VmRSS"), told["widths"], told["context"]
    shape = LlamaConfig(
        **widths, head_dim=widths["dim"] // widths["num_heads"], max_context=length, tie_embeddings=told["tied"]
    )

    def network(dtype: torch.dtype, seed: int = SEED) -> Llama:
        with torch.device(told["device"]):
            model = Llama(shape).to(dtype)
            model.initialize(seed)
        return model

    model = network(torch.bfloat16 if told["task"] == "lora" else torch.float32)
    if told["task"] == "lora":
        add_adapter(model, AdapterShape(["all"], RANK, 2 * RANK), seed=SEED)
    if told["recomputes"]:
        recompute_blocks(model)
    ids = examples(told, told["batch"] * 64).to(told["device"])

    class Packer:
        num_too_long = 0

        def next(self, position: int) -> tuple[Batch, int]:
            rows = ids[torch.arange(position, position + told["batch"]) % len(ids)]
            tokens, targets = rows.flatten(), rows.roll(-1, 1).flatten()
            trained = torch.ones_like(rows, dtype=torch.bool)
            trained[:, -1] = False  # what stands behind an example is unknown to both
            found = Batch(tokens, targets, trained.flatten(), (length,) * told["batch"], columns)
            return found, position + told["batch"]

    columns = labels(told) if told["task"] == "labels" else {}
    sizes = {"data": [Path()], "start": Path(), "steps": MAX_STEPS, "batch_tokens": ids[0].numel() * told["batch"]}
    sizes |= {"optim": {"lr": LEARNING_RATE, "warmup_steps": 0}, "context": length}
    if told["task"] == "distill":
        config = distill.Config(**sizes, teacher=Path())
        teacher = network(torch.bfloat16, SEED + 1).eval().requires_grad_(False)
        objective: NextToken = LiveTeacher(
            chat=None,  # type: ignore[arg-type]
            is_every_token=True,
            has_fresh_identifiers=False,
            teacher=teacher,
            dtype=torch.bfloat16,
            temperature=1.0,
            teacher_weight=1.0,
            divergence=Divergence(),
        )
    elif told["task"] == "labels":
        config = distill.Config(**sizes | {"data": []}, labels=Path())
        objective = StoredLabels(None, True, False, Divergence(), 1.0, 1.0)  # type: ignore[arg-type]
    else:
        config, objective = sft.Config(**sizes), NextToken(None, True, False)  # type: ignore[arg-type]
    optimizer = loop.make_optimizer(model, config.optim)
    counter = TokenCounter(tokenizer)
    counter._is_formatting = dict.fromkeys(range(widths["vocab_size"]), False)
    training = loop.Training(
        config, None, objective, model, optimizer, Packer(), TrainState(position=0), Team(), counter, lambda _: None
    )  # type: ignore[arg-type]
    model.train()
    clock = Clock(f"torch {torch.__version__}", before)
    while True:
        clock.begin()
        clock.end(loop._step(training)["loss"])


def run_trl(told: dict[str, Any]) -> None:
    """Take the steps of SFTTrainer or, with a teacher, GKDTrainer on the data's own tokens with the forward KL."""
    import peft
    import transformers
    import trl
    from datasets import Dataset

    before, widths = memory("VmRSS"), told["widths"]
    heads = {"num_attention_heads": widths["num_heads"], "num_key_value_heads": widths["num_kv_heads"]}
    shape = transformers.LlamaConfig(
        hidden_size=widths["dim"], intermediate_size=widths["hidden_dim"], num_hidden_layers=widths["num_layers"],
        vocab_size=widths["vocab_size"], max_position_embeddings=told["context"], tie_word_embeddings=told["tied"],
        bos_token_id=0, eos_token_id=1, pad_token_id=2, **heads,
    )  # fmt: skip

    def network(dtype: torch.dtype) -> Any:
        with torch.device(told["device"]):
            return transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation="sdpa")

    model = network(torch.bfloat16 if told["task"] == "lora" else torch.float32)
    dataset = Dataset.from_dict({"input_ids": examples(told, told["batch"] * 64).tolist()})
    if told["task"] in DISTILLS:
        ids = dataset["input_ids"]
        dataset = dataset.add_column("labels", ids).add_column("attention_mask", [[1] * len(row) for row in ids])
    settings: dict[str, Any] = {
        "output_dir": "/tmp/unused", "per_device_train_batch_size": told["batch"], "max_steps": MAX_STEPS,
        "bf16": True, "use_cpu": told["device"] == "cpu", "learning_rate": LEARNING_RATE, "report_to": [],
        "optim": "adamw_torch_fused", "gradient_checkpointing": told["recomputes"], "save_strategy": "no",
        "logging_strategy": "no", "disable_tqdm": True, "max_length": told["context"], "dataloader_num_workers": 0,
        "weight_decay": 0.1, "max_grad_norm": 1.0, "remove_unused_columns": False,
    }  # fmt: skip
    clock = None

    class Waiting(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            assert clock is not None
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            assert clock is not None
            clock.end(float(losses[-1]))

    losses: list[torch.Tensor] = []
    tokenizer = small_tokenizer()
    given: dict[str, Any] = {"model": model, "train_dataset": dataset, "processing_class": tokenizer}
    given |= {"callbacks": [Waiting()]}
    if told["task"] in DISTILLS:
        trainer = distilling(trl, settings, given, network(torch.bfloat16).eval())
    else:
        settings |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": False}
        if told["task"] == "lora":
            given["peft_config"] = peft.LoraConfig(
                r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0
            )
        trainer = trl.SFTTrainer(args=trl.SFTConfig(**settings), **given)
    noting(trainer, losses)
    versions = f"trl {trl.__version__}, peft {peft.__version__}, transformers {transformers.__version__}"
    clock = Clock(f"{versions}, torch {torch.__version__}, sdpa", before)
    trainer.train()


def distilling(trl: Any, settings: dict[str, Any], given: dict[str, Any], teacher: Any) -> Any:
    """Return GKD's trainer, which always reads the data's own tokens and compares whole distributions."""
    from transformers import default_data_collator
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    config = GKDConfig(**settings, lmbda=0.0, beta=0.0, temperature=1.0, dataset_kwargs={"skip_prepare_dataset": True})
    trainer = GKDTrainer(args=config, teacher_model=teacher, **given)
    trainer.data_collator = default_data_collator
    return trainer


def noting(trainer: Any, losses: list[torch.Tensor]) -> None:
    """Let a trainer note the loss of each step."""
    plain: Callable[..., Any] = trainer.training_step

    def noted(*arguments: Any, **named: Any) -> Any:
        losses.append(plain(*arguments, **named))
        return losses[-1]

    trainer.training_step = noted


def small_tokenizer() -> Any:
    """Return a tokenizer, which the trainers ask for; nothing is encoded."""
    import transformers
    from tokenizers import Tokenizer, models

    words = {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a")),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="a",
    )  # fmt: skip


def main(kind: str, told: str) -> None:
    """Take steps until the input ends."""
    settings = json.loads(told)
    torch.set_num_threads(settings["threads"])
    settings["tied"] = settings["widths"]["dim"] < 4096
    {"puna": run_puna, "trl": run_trl}[kind](settings)


if __name__ == "__main__":
    main(*sys.argv[1:])
