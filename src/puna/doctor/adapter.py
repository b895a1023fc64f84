"""A PEFT adapter's directory -> findings about its settings, its matrices and their base. Merges nothing."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from puna.checkpoint.adapters.adapter import BASE_LAYER, CONFIG_NAME, DOWN, FIXED, UP, WEIGHTS_NAME, WHOLE, place_of
from puna.checkpoint.checkpoint import Checkpoint
from puna.checkpoint.directory import find_file, read_json
from puna.checkpoint.layout import StoredTensor, read_header
from puna.checkpoint.source import tensor_shapes
from puna.doctor.directory.files import check_files
from puna.doctor.directory.opened import find_safely
from puna.doctor.finding import Report, listed
from puna.doctor.values import check_values, readable, scan
from puna.errors import CheckpointError

TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "embed_tokens"}
MATRICES = re.compile(r"\.(lora_A\.weight|lora_B\.weight|lora_embedding_A|lora_embedding_B)$")
# The matrix of each pair that starts at zero.
STARTS_ZERO = ("lora_B.weight", "lora_embedding_A")
MAX_RANK = 2**16


def check_adapter(directory: Path, report: Report, console: Console, *, quick: bool, base: Path | None) -> None:
    """Add all findings about an adapter; it is held against `base`, or the base that it names if that is here."""
    with report.attempt("file-unreadable", "."):
        check_files(directory, report)
    raw: dict[str, Any] = {}
    with report.attempt("file-unreadable", CONFIG_NAME):
        file = find_safely(directory, CONFIG_NAME)
        if file is None:
            raise CheckpointError(f"{directory} has no {CONFIG_NAME}", expected="an adapter as PEFT writes it")
        raw = read_json(file)
        _check_settings(raw, report)
    layout: dict[str, StoredTensor] = {}
    with report.attempt("weights-unreadable", WEIGHTS_NAME):
        file = find_file(directory, WEIGHTS_NAME)
        if file is None:
            remedy = "Save the adapter as safetensors; a pickled adapter_model.bin is never read"
            report.add("weights-missing", ".", f"no {WEIGHTS_NAME}", remedy)
        else:
            layout = read_header(file)
    with report.attempt("adapter-rank", WEIGHTS_NAME):
        _check_ranks(raw, layout, report)
    with report.attempt("base-unknown", CONFIG_NAME):
        _check_base(directory, raw, layout, report, base)
    if not quick:
        _check_values(layout, report, console)


def _check_settings(raw: dict[str, Any], report: Report) -> None:
    if raw.get("auto_map"):
        report.add("code-named", CONFIG_NAME, "auto_map names Python code", "Remove it: LoRA needs no code")
    remedy = "Merge this adapter with the program that trained it, and look at the merged checkpoint"
    for key, allowed in FIXED.items():
        if key in raw and not any(raw[key] == value for value in allowed):
            what = f"{key} = {raw[key]!a:.100}; expected {allowed[0]!r}"
            report.add("adapter-unsupported", CONFIG_NAME, what, remedy)
    if "peft_type" not in raw:
        report.add("adapter-unsupported", CONFIG_NAME, "no peft_type; expected 'LORA'", remedy)
    for key in ("r", "lora_alpha"):
        value = raw.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MAX_RANK:
            what = f"{key} = {value!a:.60}; expected a positive number"
            fix = "Copy adapter_config.json again: without it nobody knows by how much the matrices count"
            report.add("adapter-unsupported", CONFIG_NAME, what, fix)
    targets = raw.get("target_modules")
    names = [str(name).split(".")[-1] for name in targets] if isinstance(targets, list) else []
    unknown = sorted(name for name in names if name not in TARGETS)
    if unknown:
        what = f"target_modules has {listed(unknown)}; expected modules of a Llama: {', '.join(sorted(TARGETS))}"
        report.add("adapter-target", CONFIG_NAME, what, "Use the adapter on the kind of model that it was trained for")
    if raw.get("modules_to_save"):
        what = f"modules_to_save = {raw['modules_to_save']!a:.100}: whole modules replace the base's"
        report.add(
            "adapter-extra", CONFIG_NAME, what, "Nothing if it is on purpose; servers that load adapters skip them"
        )
    rank, alpha = (ascii(raw.get(key))[:20] for key in ("r", "lora_alpha"))
    report.facts["adapter"] = f"LoRA, rank {rank}, alpha {alpha}"


def _check_ranks(raw: dict[str, Any], layout: Mapping[str, StoredTensor], report: Report) -> None:
    wrong: list[str] = []
    for name, rank in _stored_ranks(layout):
        expected = _rank_of(raw, name)
        if expected is not None and rank != expected:
            wrong.append(f"{name} has rank {rank} instead of {expected}")
    if wrong:
        remedy = "Copy adapter_config.json and weights from one training: alpha / rank scales what is merged"
        report.add("adapter-rank", WEIGHTS_NAME, listed(wrong), remedy)
    pairs = {MATRICES.sub("", name) for name in layout if MATRICES.search(name)}
    odd = sorted(stem for stem in pairs if sum(name.startswith(f"{stem}.lora_") for name in _matrices(layout)) != 2)
    if odd:
        report.add("adapter-rank", WEIGHTS_NAME, f"only one of two matrices for {listed(odd)}", "Copy the file again")


def _matrices(layout: Mapping[str, StoredTensor]) -> list[str]:
    return [name for name in layout if MATRICES.search(name)]


def _stored_ranks(layout: Mapping[str, StoredTensor]) -> Iterator[tuple[str, int]]:
    for name in _matrices(layout):
        shape = layout[name].shape
        if len(shape) == 2:
            yield name, shape[0] if name.endswith(("lora_A.weight", "lora_embedding_A")) else shape[1]


def _rank_of(raw: dict[str, Any], name: str) -> int | None:
    """Return the rank that the config gives this tensor: rank_pattern's names end a module's, and win over r."""
    module = MATRICES.sub("", name)
    pattern = raw.get("rank_pattern")
    special = pattern if isinstance(pattern, dict) else {}
    found = next((rank for key, rank in special.items() if module.endswith(key.lstrip("^").rstrip("$"))), raw.get("r"))
    return found if type(found) is int else None


def _check_base(
    directory: Path, raw: dict[str, Any], layout: Mapping[str, StoredTensor], report: Report, base: Path | None
) -> None:
    named = raw.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        remedy = "Write the base's name into adapter_config.json: on another base the adapter does harm"
        report.add("base-unknown", CONFIG_NAME, "no base_model_name_or_path", remedy)
        named = ""
    shapes: dict[str, tuple[int, ...]] = {}
    found = base or next((path for path in (directory / named, Path(named)) if named and path.is_dir()), None)
    if found is None:
        report.facts["base"] = f"{ascii(named)[1:-1]}, not here: give --base to hold the adapter against it"
    else:
        report.facts["base"] = str(found)
        shapes = dict(tensor_shapes(Checkpoint.open(found).config))
    foreign, unfit = [], []
    for name in layout:
        place = place_of(name)
        shape = shapes.get(place.name) if place else None
        is_saved = place is not None and place.part in (WHOLE, BASE_LAYER)
        if place is None or (shapes and shape is None) or (not shapes and place.name.split(".")[-2] not in TARGETS):
            foreign += [] if is_saved and not shapes else [name]
        elif shape and len(shape) == 2 and not _fits(place.part, layout[name].shape, shape):
            unfit.append(f"{name} is {list(layout[name].shape)} for {list(shape)}")
    remedy = "Merge it into the base that it was trained on; give that with --base"
    if foreign:
        report.add("adapter-target", WEIGHTS_NAME, f"{listed(foreign)} belong to nothing in a base like this", remedy)
    if unfit:
        report.add("adapter-rank", WEIGHTS_NAME, f"{listed(unfit)}; expected the base's sizes", remedy)


def _fits(part: str, given: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if part in (WHOLE, BASE_LAYER):
        return given == shape
    if part == DOWN:
        return given[1:] == shape[1:]
    return part != UP or given[:1] == shape[:1]


def _check_values(layout: dict[str, StoredTensor], report: Report, console: Console) -> None:
    tensors = readable(layout)
    scanned = scan(tensors, report, console)
    starts = {name: values for name, values in scanned.items() if name.endswith(STARTS_ZERO)}
    zero = {name for name, values in starts.items() if values.is_constant and values.low == 0}
    if starts and len(zero) == len(starts):
        remedy = "Check that the training saved the adapter that it trained, and that its learning rate was not zero"
        report.add("adapter-untrained", WEIGHTS_NAME, f"all {len(zero):,} lora_B matrices are zero", remedy)
    check_values(tensors, {name: values for name, values in scanned.items() if name not in zero}, report)
