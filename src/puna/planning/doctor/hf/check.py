"""A directory in Hugging Face layout -> all findings about it, each check for itself."""

from pathlib import Path

from rich.console import Console

from puna.formats.tokenizer.files import NUM_LLAMA3_RANKS
from puna.planning.doctor.hf.files import check_files, check_licence, check_manifest
from puna.planning.doctor.hf.layout import EMBEDDINGS, HEAD, check_fit, check_headers
from puna.planning.doctor.hf.opened import CONFIG, Opened, open_directory
from puna.planning.doctor.hf.settings import LLAMA3_VOCAB, check_dtype, check_settings
from puna.planning.doctor.hf.stops import check_padding, check_roles, check_stops
from puna.planning.doctor.hf.templates import check_templates, find_templates
from puna.planning.doctor.hf.vocabulary import check_sizes, check_tokenizer
from puna.planning.doctor.report import Report
from puna.planning.doctor.values import check_values, readable, scan


def check_directory(path: Path, report: Report, console: Console, *, quick: bool) -> None:
    """Add all findings about a checkpoint directory; `quick` leaves out the weights' values and the hashes."""
    with report.attempt("file-unreadable", "."):
        check_files(path, report)
    opened = open_directory(path, report)
    templates = find_templates(opened)
    checks = {CONFIG: check_settings, "tokenizer": check_tokenizer, "weights": check_headers}
    checks |= {"tensors": check_fit, "stops": check_stops, "padding": check_padding, "roles": check_roles}
    checks |= {"sizes": check_sizes, "dtype": check_dtype}
    for where, check in checks.items():
        with report.attempt("file-unreadable", where):
            check(opened)
    with report.attempt("template-invalid", "chat template"):
        check_templates(opened, templates)
    if not quick:
        _check_values(opened, console)
    with report.attempt("file-unreadable", "manifest"):
        check_manifest(path, report, quick=quick)
    is_llama = opened.config is not None and opened.config.vocab_size == LLAMA3_VOCAB
    is_llama |= opened.tokenizer is not None and opened.tokenizer.num_regular == NUM_LLAMA3_RANKS
    with report.attempt("file-unreadable", "licence"):
        check_licence(path, report, is_llama=is_llama)


def _check_values(opened: Opened, console: Console) -> None:
    tensors = readable(opened.layout)
    scanned = scan(tensors, opened.report, console)
    check_values(tensors, scanned, opened.report)
    tied = opened.config is not None and opened.config.tie_embeddings
    if tied and EMBEDDINGS in scanned and HEAD in scanned and scanned[EMBEDDINGS] != scanned[HEAD]:
        remedy = "Remove lm_head.weight, or write tie_word_embeddings: false: programs differ in which of them they use"
        opened.report.add("tie-broken", CONFIG, "tied by config.json, but lm_head.weight is not the embeddings", remedy)
