"""What a step of distillation costs: from stored labels, beside TRL's GKD trainer with its teacher in memory.

    pip install -e '.[bench]'
    python benchmarks/distill.py FOLDER --steps 5 --write docs/results/distill.md

One pair of random networks with Llama's vocabulary, the same rows of equal length in each step (no padding on TRL's
side), AdamW, activations in bfloat16 and weights in float32, forward KL alone on both sides. Steps alternate: Puna from
labels, TRL, and Puna's fine-tuning on the same batch; medians over the steps. Of TRL it is `GKDTrainer.training_step`
(student, teacher, loss, backward pass) and an AdamW step.
"""

import argparse
import datetime
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset as Rows
from random_models import wide_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from puna.data.packing import Batch
from puna.formats.checkpoint.checkpoint import Checkpoint, save_checkpoint
from puna.formats.tokenizer.train import train_tokenizer
from puna.model.attend import packed_attend
from puna.model.config import LlamaConfig
from puna.model.kernels.threads import cpu_limit
from puna.model.llama import Llama
from puna.training.objectives.distillation.divergence import Divergence
from puna.training.objectives.distillation.stored_labels import StoredLabels
from puna.training.objectives.losses import summed_over_tokens
from puna.training.objectives.next_token import NextToken
from puna.training.teacher.local import LocalTeacher
from puna.training.teacher.teacher import Item

VOCAB_SIZE = 128_256
SIZES = {
    "teacher": {"dim": 1024, "hidden_dim": 2816, "num_layers": 8, "num_heads": 16, "num_kv_heads": 4},
    "student": {"dim": 512, "hidden_dim": 1408, "num_layers": 4, "num_heads": 8, "num_kv_heads": 2},
}
RATE = 1e-5


def write_pair(folder: Path, context: int) -> None:
    """Write teacher and student with random weights, unless they are there."""
    text = "The quick brown fox jumps over the lazy dog. "
    tokenizer = train_tokenizer([text] * 9, vocab_size=545, split_digits=True)
    for name, widths in SIZES.items():
        if not (folder / name).exists():
            (folder / name).mkdir(parents=True)
            model = Llama(LlamaConfig(**widths, head_dim=64, vocab_size=VOCAB_SIZE, max_context=context))
            model.initialize(0)
            save_checkpoint(folder / name, model, tokenizer)


class PunaSteps:
    """Steps from labels, and of plain fine-tuning, of one student each."""

    def __init__(self, folder: Path, rows: torch.Tensor, prompt_len: int):
        self.ids, self.mask = rows.tolist(), [at >= prompt_len for at in range(rows.shape[1])]
        # Rows come as ids: nothing is encoded.
        chat: Any = SimpleNamespace(tokenizer=wide_tokenizer(VOCAB_SIZE))
        self.distilling = StoredLabels(chat, False, False, Divergence(), 1.0, 1.0)
        self.plain = NextToken(chat, False, False)
        self.models = [Checkpoint.open(folder / "student").load(torch.float32).train() for _ in range(2)]
        self.optimizers = [torch.optim.AdamW(model.parameters(), lr=RATE, fused=True) for model in self.models]
        self.columns: dict[str, torch.Tensor] = {}

    def label(self, folder: Path) -> float:
        """Label the rows as `puna label` does; return the seconds that it took."""
        size = {"top_k": 64, "temperature": 1.0, "context": len(self.mask), "batch_tokens": 4096}
        teacher = LocalTeacher(
            Checkpoint.open(folder / "teacher").load(torch.bfloat16), None, dtype=torch.bfloat16, **size
        )
        begin = time.perf_counter()
        found = teacher.label([Item(None, ids, self.mask) for ids in self.ids], lambda _: None)  # type: ignore[arg-type]
        parts = [labelled.labels.columns() for labelled in found if labelled.labels]
        self.columns = {name: torch.cat([part[name][1:] for part in parts]) for name in parts[0]}
        return time.perf_counter() - begin

    def batch(self) -> Batch:
        tokens, targets = ([each for ids in self.ids for each in ids[part]] for part in (slice(-1), slice(1, None)))
        trained_T = torch.tensor(self.mask[1:] * len(self.ids))
        lengths = tuple(len(ids) - 1 for ids in self.ids)
        return Batch(torch.tensor(tokens), torch.tensor(targets), trained_T, lengths, self.columns)

    def distill(self) -> float:
        return self._step(0, self.distilling)

    def tune(self) -> float:
        return self._step(1, self.plain)

    def _step(self, which: int, objective: NextToken) -> float:
        model, optimizer, batch = self.models[which], self.optimizers[which], self.batch()
        hidden_TD = model(batch.tokens_T, batch.positions_T, packed_attend(batch.lengths), dtype=torch.bfloat16)
        rows = objective.rows(batch)
        losses = summed_over_tokens(model, hidden_TD[batch.trained_T], rows, objective.terms)
        (losses["loss"] / objective.num_counted(batch)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return losses["loss"].item() / objective.num_counted(batch)


class TrlSteps:
    """The same steps by GKDTrainer, off-policy, beta 0 (forward KL)."""

    def __init__(self, folder: Path, rows: torch.Tensor, prompt_len: int):
        student = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
        teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(folder / "student")
        told = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "dog"}]
        config = GKDConfig(
            output_dir=str(folder / "trl"), lmbda=0.0, beta=0.0, temperature=1.0, bf16=True, use_cpu=True,
            report_to=[], per_device_train_batch_size=len(rows), gradient_checkpointing=False, max_steps=1,
        )  # fmt: skip
        self.trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=config,
            processing_class=tokenizer,
            train_dataset=Rows.from_list([{"messages": told}] * 4),
        )
        self.trainer.current_gradient_accumulation_steps = 1  # What `train` sets before the first step.
        self.model = self.trainer.accelerator.prepare_model(self.trainer.model)
        self.optimizer = torch.optim.AdamW(self.trainer.model.parameters(), lr=RATE, fused=True)
        labels = rows.clone()
        labels[:, :prompt_len] = -100
        ones, prompts = torch.ones_like(rows), rows[:, :prompt_len]
        self.inputs = {"input_ids": rows, "attention_mask": ones, "labels": labels, "prompts": prompts}
        self.inputs["prompt_attention_mask"] = torch.ones_like(prompts)

    def step(self) -> float:
        loss = self.trainer.training_step(self.model, dict(self.inputs), None)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def measure(ways: dict[str, Callable[[], float]], steps: int) -> dict[str, list[float]]:
    """Run the ways in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(steps + 1):
        for name, step in ways.items():
            begin = time.perf_counter()
            loss = step()
            took = time.perf_counter() - begin
            print(f"round {round_}: {name} {took:.2f} s, loss {loss:.4f}", flush=True)
            if round_:
                seconds[name].append(took)
    return seconds


def report(arguments: argparse.Namespace, seconds: dict[str, list[float]], labelling: float) -> str:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    tokens = arguments.rows * arguments.length
    lines = [
        "# Distillation: a step from labels, and one with the teacher in memory",
        "",
        f"`python benchmarks/distill.py FOLDER --rows {arguments.rows} --length {arguments.length} "
        f"--steps {arguments.steps}`, {datetime.date.today():%d %B %Y}, {cpu_limit()} cores without a GPU, "
        f"load {os.getloadavg()[0]:.0f} when it ended. Random networks: teacher {SIZES['teacher']['dim']} wide, "
        f"{SIZES['teacher']['num_layers']} layers; student {SIZES['student']['dim']}, "
        f"{SIZES['student']['num_layers']}; {VOCAB_SIZE:,} ids; {tokens:,} tokens a step, "
        "bfloat16. Medians, and the range.",
        "",
        "| | seconds a step | range | times as fast as TRL |",
        "|---|---:|---:|---:|",
    ]
    for name, values in seconds.items():
        ratio = medians["TRL GKD"] / medians[name]
        lines.append(f"| {name} | {medians[name]:.2f} | {min(values):.2f} to {max(values):.2f} | {ratio:.2f} |")
    lines += ["", f"Labelling these tokens once took {labelling:.2f} s, which several epochs share.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(cpu_limit())
    write_pair(arguments.folder, arguments.length)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1000, VOCAB_SIZE, (arguments.rows, arguments.length), generator=generator)
    prompt_len = arguments.length // 8
    puna, trl = PunaSteps(arguments.folder, rows, prompt_len), TrlSteps(arguments.folder, rows, prompt_len)
    labelling = puna.label(arguments.folder)
    ways = {"Puna, labels": puna.distill, "TRL GKD": trl.step, "Puna, sft": puna.tune}
    text = report(arguments, measure(ways, arguments.steps), labelling)
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
