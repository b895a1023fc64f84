"""A checkpoint directory -> a loaded engine, and facts for the server. Imports torch.

`puna serve` calls this in the engine's process, `open_served` in the server's process.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from puna.formats.chat.format import ChatFormat
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.inference.engine.grammar.grammar import Grammar, GrammarCompiler
from puna.inference.engine.local import LocalSampler, sampling_defaults
from puna.inference.engine.options import EngineOptions
from puna.inference.engine.sampling.params import SamplingParams
from puna.pipeline.artifacts.artifact import verifying
from puna.pipeline.errors import ConfigError
from puna.serving.generation.engine_loop import StepEngine
from puna.serving.generation.messages import Facts

OPENAIS_TEMPERATURE = 1.0

CompileGrammar = Callable[[str, str], Grammar]  # of a grammar's text and the name of its field


def load_engine(spec: Mapping[str, Any]) -> tuple[StepEngine, Facts, CompileGrammar]:
    """Load the checkpoint of an `engine_spec`; return the engine, the facts, and a compiler of grammars."""
    options = EngineOptions(**spec["options"])
    adapters, dtype = spec["options"]["adapters"], spec["options"]["dtype"]
    options = replace(options, adapters=adapters and Path(adapters), dtype=dtype and getattr(torch, dtype))
    path = Path(spec["checkpoint"])
    sampler = open_sampler(path, options=options, draft=spec["draft"], is_verified=spec.get("is_verified", False))
    facts = facts_of(path, sampler)
    compiler = GrammarCompiler(sampler.tokenizer, facts.stop_ids)
    return sampler.engine, facts, lambda text, param: compiler.compile(text, param=param, is_sound=True)


def open_sampler(path: Path, *, options: EngineOptions, draft: str, is_verified: bool = False) -> LocalSampler:
    """Load a checkpoint directory; meanwhile, verify the files of an artifact."""
    readable = Checkpoint.open(path).config.max_context
    if options.max_context is not None and not 2 <= options.max_context <= readable:
        raise ConfigError(f"--max-context {options.max_context}", expected=f"2 to {readable}, which the model can read")
    with contextlib.nullcontext() if is_verified else verifying(path):
        return LocalSampler.open(path, options=options, draft=draft)


def facts_of(path: Path, sampler: LocalSampler) -> Facts:
    """Collect the facts that the server's process needs."""
    adapters = sampler.engine.adapters
    stop_ids = (*Checkpoint.open(path).stop_ids, *ChatFormat(sampler.tokenizer).stop_ids)
    return Facts(
        max_context=sampler.max_context,
        stop_ids=tuple(dict.fromkeys(stop_ids)),
        defaults=sampling_defaults(path, SamplingParams(temperature=OPENAIS_TEMPERATURE)),
        unfit_adapters=adapters.unfit() if adapters else [],
    )
