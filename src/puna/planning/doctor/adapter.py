"""A PEFT adapter's directory -> findings about settings, matrices and base. Merges nothing.

Settings, names, patterns and shapes are judged by the code that merges, serves and trains (checkpoint/adapters).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from puna.formats.checkpoint.adapters.adapter import (
    alpha_notes,
    base_of,
    describe_tables,
    doubts,
    missing_targets,
    weights_hint,
)
from puna.formats.checkpoint.adapters.config import AdapterConfig, parse_config, problems
from puna.formats.checkpoint.adapters.delta import Delta, matrices
from puna.formats.checkpoint.adapters.fit import misfits
from puna.formats.checkpoint.adapters.folder import CONFIG_NAME, WEIGHTS_NAME
from puna.formats.checkpoint.adapters.keys import BASE_LAYER, TOKENS, WHOLE, find_parts, find_spelling, parse_key
from puna.formats.checkpoint.adapters.patterns import LINEAR_NAMES
from puna.formats.checkpoint.checkpoint import Checkpoint
from puna.formats.checkpoint.safe_files import find_file, read_json
from puna.formats.checkpoint.safetensors.header import StoredTensor, read_header
from puna.model.config import LlamaConfig
from puna.pipeline.errors import CheckpointError
from puna.planning.doctor.hf.files import check_files
from puna.planning.doctor.hf.opened import find_safely
from puna.planning.doctor.report import Report, listed
from puna.planning.doctor.values import check_values, readable, scan

TARGETS = LINEAR_NAMES | {"lm_head", "embed_tokens"}
# The matrix of each pair that starts at zero.
STARTS_ZERO = ("lora_B.weight", "lora_embedding_A")
CODES = {"target": "adapter-target", "rank": "adapter-rank"}

Layout = Mapping[str, StoredTensor]


def check_adapter(directory: Path, report: Report, console: Console, *, quick: bool, base: Path | None) -> None:
    """Add all findings about an adapter, compared with `base`, or with the base of its lineage or name."""
    with report.attempt("file-unreadable", "."):
        check_files(directory, report)
    raw: dict[str, Any] = {}
    config: AdapterConfig | None = None
    with report.attempt("file-unreadable", CONFIG_NAME):
        file = find_safely(directory, CONFIG_NAME)
        if file is None:
            raise CheckpointError(f"{directory} has no {CONFIG_NAME}", expected="an adapter as PEFT writes it")
        raw = read_json(file)
        config = _check_settings(raw, report)
    layout: dict[str, StoredTensor] = {}
    with report.attempt("weights-unreadable", WEIGHTS_NAME):
        file = find_file(directory, WEIGHTS_NAME)
        if file is None:
            report.add("weights-missing", ".", f"no {WEIGHTS_NAME}", weights_hint(directory))
        else:
            layout = read_header(file)
    parts: dict[str, dict[str, str]] = {}
    with report.attempt("adapter-target", WEIGHTS_NAME):
        parts = _check_names(config, layout, directory, report)
    with report.attempt("adapter-unsupported", CONFIG_NAME):
        if config:
            for doubt in doubts(config, layout, parts):
                remedy = "Take adapter_config.json and weights of one training: PEFT leaves such modules out, or fails"
                report.add(CODES[doubt.kind], WEIGHTS_NAME, doubt.text, remedy)
            for note in alpha_notes(config, parts):
                fix = "Compare the merged model with the trained one, and write an alpha for each module"
                report.add("adapter-extra", CONFIG_NAME, note, fix)
    with report.attempt("base-unknown", CONFIG_NAME):
        found = _find_base(directory, raw, report, base)
        if found and config and parts:
            network = Checkpoint.open(found).config
            delta = Delta(config, layout, parts)
            _check_fit(delta, network, report)
            if not any(finding.severity == "broken" for finding in report.findings):
                if missing := missing_targets(config, parts, network):
                    what = f"no matrices for {listed(missing)}, which target_modules names"
                    fix = "Copy the file again if the training saved these; merging leaves the modules as in the base"
                    report.add("adapter-extra", WEIGHTS_NAME, what, fix)
                tables = "; ".join(describe_tables(network, delta.merged_config(network)))
                report.facts |= {"merged": tables} if tables else {}
    if not quick:
        _check_values(layout, report, console)


def _check_settings(raw: dict[str, Any], report: Report) -> AdapterConfig | None:
    """Add the findings about settings; return the settings if all can be followed."""
    if raw.get("auto_map"):
        report.add("code-named", CONFIG_NAME, "auto_map names Python code", "Remove it: LoRA needs no code")
    remedy = "Merge this adapter with the program that trained it, and look at the merged checkpoint"
    found = list(problems(raw))
    for problem in found:
        what = f"{problem.given}; expected {problem.expected}"
        report.add("adapter-unsupported", CONFIG_NAME, what, problem.hint or remedy)
    targets = raw.get("target_modules")
    names = [str(name).split(".")[-1] for name in targets] if isinstance(targets, list) else []
    unknown = sorted(name for name in names if name not in TARGETS)
    if unknown and len(unknown) == len(names):  # PEFT leaves out names that the model does not have
        what = f"target_modules has {listed(unknown)}; expected modules of a Llama: {', '.join(sorted(TARGETS))}"
        report.add("adapter-target", CONFIG_NAME, what, "Use the adapter on the kind of model that it was trained for")
    for key in ("modules_to_save", "trainable_token_indices"):
        if raw.get(key):
            what = f"{key} = {raw[key]!a:.100}: modules or rows that replace the base's"
            fix = "Nothing if it is on purpose; servers that load adapters skip them, so merge the adapter"
            report.add("adapter-extra", CONFIG_NAME, what, fix)
    config = None if found else parse_config(raw)
    for note in config.notes if config else ():
        report.add("adapter-extra", CONFIG_NAME, note, "Nothing if the fields are of training alone")
    rank, alpha = (ascii(raw.get(key))[:20] for key in ("r", "lora_alpha"))
    is_lora = raw.get("peft_type") == "LORA"
    report.facts["adapter"] = f"LoRA, rank {rank}, alpha {alpha}" if is_lora else ascii(raw.get("peft_type"))[:40]
    return config


def _check_names(
    config: AdapterConfig | None, layout: Layout, directory: Path, report: Report
) -> dict[str, dict[str, str]]:
    """Add the findings about names of tensors; return the parts if all are known."""
    foreign = [key for key in layout if parse_key(key) is None]
    if foreign:
        spelling = next(filter(None, map(find_spelling, foreign)), None)
        reason = f": {spelling.name}" if spelling else " belong to no Llama"
        remedy = spelling.hint if spelling else "Use the adapter on the kind of model that it was trained for"
        report.add("adapter-target", WEIGHTS_NAME, f"{listed(foreign)}{reason}", remedy)
    if foreign or not layout or config is None:
        return {}
    parts = find_parts(layout, config, directory / WEIGHTS_NAME)
    whole = (WHOLE, BASE_LAYER, TOKENS)
    halves = sorted(name for name, each in parts.items() if {*each} - {*whole} and not {*matrices(each)} <= {*each})
    if halves:
        remedy = "Copy the file again"
        report.add("adapter-rank", WEIGHTS_NAME, f"only one of two matrices for {listed(halves)}", remedy)
    return parts


def _find_base(directory: Path, raw: dict[str, Any], report: Report, base: Path | None) -> Path | None:
    named = raw.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        remedy = "Write the base's name into adapter_config.json: on another base the adapter does harm"
        report.add("base-unknown", CONFIG_NAME, "no base_model_name_or_path", remedy)
        named = ""
    found = base or (base_of(directory) if raw else None)
    missing = f"{ascii(named)[1:-1]}, not here: give --base to hold the adapter against it"
    report.facts["base"] = str(found) if found else missing
    return found


def _check_fit(delta: Delta, base: LlamaConfig, report: Report) -> None:
    found = list(misfits(delta, base))
    for kind, code in CODES.items():
        if every := [each for each in found if each.kind == kind]:
            what = f"{listed([each.given for each in every])}; expected {every[0].expected}"
            report.add(code, WEIGHTS_NAME, what, every[0].hint)


def _check_values(layout: dict[str, StoredTensor], report: Report, console: Console) -> None:
    tensors = readable(layout)
    scanned = scan(tensors, report, console)
    starts = {name: values for name, values in scanned.items() if name.endswith(STARTS_ZERO)}
    zero = {name for name, values in starts.items() if values.is_constant and values.low == 0}
    if starts and len(zero) == len(starts):
        remedy = "Check that the training saved the adapter that it trained, and that its learning rate was not zero"
        report.add("adapter-untrained", WEIGHTS_NAME, f"all {len(zero):,} lora_B matrices are zero", remedy)
    check_values(tensors, {name: values for name, values in scanned.items() if name not in zero}, report)
