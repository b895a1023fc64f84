"""Headers and index of weights files -> findings; values are not read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from puna.formats.checkpoint.hf.weights import FLOATS, require_fit
from puna.formats.checkpoint.safe_files import find_file, read_json
from puna.formats.checkpoint.safetensors.header import INDEX_NAME, SINGLE_NAME, StoredTensor, read_header
from puna.formats.checkpoint.source import tensor_shapes
from puna.model.config import LlamaConfig
from puna.model.quantization.scheme import describe_schemes
from puna.pipeline.errors import CheckpointError
from puna.planning.doctor.hf.opened import CONFIG, Opened, find_safely
from puna.planning.doctor.report import Report, listed

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MAX_WIDTH = 2**24  # no model is as wide; products of larger sizes would overflow
DTYPE_REMEDY = "Convert the weights to bfloat16, or add the quantization_config that they were made with"


def check_headers(opened: Opened) -> None:
    """Read headers into `opened.layout`; report unreadable headers and a wrong index."""
    path, report = opened.path, opened.report
    names = sorted(file.name for file in path.glob("*.safetensors") if not file.name.startswith("adapter_"))
    is_single, has_index = SINGLE_NAME in names, find_safely(path, INDEX_NAME) is not None
    if not names and not has_index:
        remedy = "Copy the .safetensors files; pickled weights (.bin, .pth) are never read, convert them first"
        report.add("weights-missing", ".", f"neither {SINGLE_NAME} nor {INDEX_NAME}", remedy)
        return
    weight_map, total_size = (None, None) if is_single or not has_index else _read_index(opened)
    layouts = {
        name: _read_file(opened, name) for name in (names if weight_map else [SINGLE_NAME] if is_single else names)
    }
    belonging = set(weight_map.values()) if weight_map else {SINGLE_NAME} if is_single else set(names)
    others = [name for name in names if name not in belonging]
    if others:
        remedy = "Remove it if nothing needs it: programs that load every file take old weights for new ones"
        what = f"{listed(others)} beside the model's own files; expected only files that belong to it"
        report.add("shard-unlisted", others[0], what, remedy)
    elif not is_single and not has_index:
        what = f"{listed(names)} without {INDEX_NAME} or the name {SINGLE_NAME}"
        report.add("weights-missing", ".", what, f"Copy {INDEX_NAME}, or rename a single file to {SINGLE_NAME}")
    for name in belonging & layouts.keys():
        opened.layout |= layouts[name] or {}
    opened.is_whole = all(layouts.get(name) is not None for name in belonging)
    if weight_map:
        _check_index(weight_map, layouts, total_size, report)
    stored = {tensor.dtype for tensor in opened.layout.values()}
    report.facts["weights"] = (
        f"{_num_bytes(opened.layout):,} bytes in {len(belonging)} file(s), {', '.join(sorted(stored))}"
    )


def _read_file(opened: Opened, name: str) -> Mapping[str, StoredTensor] | None:
    with opened.report.attempt("weights-unreadable", name):
        file = find_safely(opened.path, name)
        return read_header(file) if file else None


def _read_index(opened: Opened) -> tuple[dict[str, str] | None, Any]:
    """Return the index's map of tensors to existing, safe files, and the index's total_size."""
    report = opened.report
    with report.attempt("weights-unreadable", INDEX_NAME):
        file = find_safely(opened.path, INDEX_NAME)
        raw = read_json(file) if file else {}
        weight_map = raw.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError("an index without a weight_map", expected="tensor names with their files")
        metadata = raw.get("metadata")
        missing: list[str] = []
        for name in sorted(set(weight_map.values())):
            try:
                file = find_file(opened.path, name)
            except CheckpointError as error:
                if not any(finding.where == name for finding in report.findings):  # a link is reported as a file
                    report.refuse("path-unsafe", INDEX_NAME, error)
                continue
            if file is None:
                missing.append(name)
        if missing:
            what = f"{listed(missing)} named, but not here; expected all {len(set(weight_map.values()))} files"
            report.add("shard-missing", INDEX_NAME, what, "Copy the missing files: a download may have stopped early")
        return weight_map, metadata.get("total_size") if isinstance(metadata, dict) else None
    return None, None


def _check_index(
    weight_map: dict[str, str],
    layouts: Mapping[str, Mapping[str, StoredTensor] | None],
    total_size: Any,
    report: Report,
) -> None:
    remedy = "Write the index anew from the files, or copy index and files together from one place"
    readable = {name: layout for name, layout in layouts.items() if layout is not None}
    places = {tensor: name for name in set(weight_map.values()) & readable.keys() for tensor in readable[name]}
    wrong = [
        f"{tensor} in {file} (it is {f'in {places[tensor]}' if tensor in places else 'in none'})"
        for tensor, file in sorted(weight_map.items())
        if file in readable and tensor not in readable[file]
    ]
    if wrong:
        report.add("index-differs", INDEX_NAME, f"the index says {listed(wrong)}", remedy)
    unlisted = sorted(places.keys() - weight_map.keys())
    if unlisted:
        report.add("index-differs", INDEX_NAME, f"the files hold {listed(unlisted)}, which it doesn't list", remedy)
    whole = set(weight_map.values()) <= readable.keys()
    num_bytes = sum(_num_bytes(readable[name]) for name in set(weight_map.values()) if name in readable)
    if whole and total_size is not None and total_size != num_bytes:
        what = f"total_size = {total_size!a:.40}; expected {num_bytes}, what the files hold"
        report.add("index-size", INDEX_NAME, what, remedy)


def _num_bytes(layout: Mapping[str, StoredTensor]) -> int:
    return sum(stored.end - stored.start for stored in layout.values())


def check_fit(opened: Opened) -> None:
    """Compare names, shapes and dtypes of tensors with config.json."""
    config, layout, report = opened.config, opened.layout, opened.report
    if config is None or not layout:
        return
    if opened.quantization:
        with report.attempt("tensor-missing", "weights"):
            schemes = require_fit(opened.path, layout, config, opened.quantization)
            report.facts["quantization"] = describe_schemes(schemes)
        return
    numbers = [name.split(".")[2] for name in layout if name.startswith("model.layers.") and name.count(".") > 3]
    with report.attempt("config-unsupported", CONFIG):
        expected = expected_shapes(config, numbers)
        _check_names(expected, opened)
        _check_shapes(expected, opened)
        _check_dtypes(layout, report)


def expected_shapes(config: LlamaConfig, numbers: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the config's layers, limited by the stored layers: a config may claim a billion.

    `numbers` are the layer numbers in the names of tensors, an entry per tensor. CheckpointError for absurd sizes.
    """
    widths = (config.dim, config.hidden_dim, config.head_dim * config.num_heads, config.vocab_size)
    if max(widths) > MAX_WIDTH:
        hint = "Copy the settings of the model that these weights belong to"
        raise CheckpointError(f"sizes up to {max(widths):,}", expected=f"at most {MAX_WIDTH:,}", hint=hint)
    num_stored = 1 + max((int(number) for number in numbers if number.isdecimal() and len(number) < 6), default=0)
    shapes = dict(tensor_shapes(replace(config, num_layers=1)))
    layer = {name: shape for name, shape in shapes.items() if ".layers.0." in name}
    for number in range(min(config.num_layers, num_stored + 1, len(numbers) + 2)):
        shapes |= {name.replace(".0.", f".{number}.", 1): shape for name, shape in layer.items()}
    return shapes


def _check_names(expected: Mapping[str, tuple[int, ...]], opened: Opened) -> None:
    config, layout, report = opened.config, opened.layout, opened.report
    assert config
    missing = sorted(expected.keys() - layout.keys())
    if HEAD in missing and EMBEDDINGS in layout and opened.is_whole:
        missing.remove(HEAD)
        remedy = (
            "Write tie_word_embeddings: true if the model shares them (the 1B and 3B do); else copy the missing file"
        )
        report.add("head-missing", CONFIG, "no lm_head.weight, and tie_word_embeddings is not true", remedy)
    if missing and opened.is_whole:  # else the file that is missing has been reported
        what = f"{listed(missing)} not in the files; expected {config.num_layers:,} layers with all their tensors"
        report.add(
            "tensor-missing", "weights", what, "Copy the files again, or config.json from the same place as they"
        )
    allowed = {HEAD} if config.tie_embeddings else set[str]()
    extra = sorted(
        name for name in layout.keys() - expected.keys() - allowed if not name.endswith(".rotary_emb.inv_freq")
    )
    if extra:
        remedy = "Check num_hidden_layers and the settings of attention and MLP in config.json; adapters must be merged"
        report.add("tensor-extra", "weights", f"{listed(extra)}; expected only what config.json describes", remedy)


def _check_shapes(expected: Mapping[str, tuple[int, ...]], opened: Opened) -> None:
    shapes = {**expected, HEAD: expected[EMBEDDINGS]}
    wrong = [
        f"{name} is {list(opened.layout[name].shape)} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name in opened.layout
        and opened.layout[name].shape != shape
        # check_sizes reports a vocabulary of another size, once.
        and not (name in (EMBEDDINGS, HEAD) and opened.layout[name].shape[1:] == shape[1:])
    ]
    if wrong:
        remedy = "Copy config.json and weights from one model: the sizes in config.json are those of another"
        opened.report.add("tensor-shape", "weights", listed(wrong), remedy)


def _check_dtypes(layout: Mapping[str, StoredTensor], report: Report) -> None:
    odd = [f"{name} is {stored.dtype}" for name, stored in layout.items() if stored.dtype not in FLOATS]
    if odd:
        report.add("tensor-dtype", "weights", f"{listed(odd)}; expected {', '.join(FLOATS)}", DTYPE_REMEDY)
    counts = {dtype: sum(stored.dtype == dtype for stored in layout.values()) for dtype in FLOATS}
    if sum(count > 0 for count in counts.values()) > 1:
        shares = ", ".join(f"{count} tensors in {dtype}" for dtype, count in counts.items() if count)
        remedy = "Store all in one dtype, unless it is on purpose: programs round the finer to the coarser"
        report.add("dtype-mixed", "weights", shares, remedy)
