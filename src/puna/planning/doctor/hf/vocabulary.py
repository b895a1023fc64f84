"""The tokenizer of a directory -> findings about vocabulary, special tokens, sizes and begin_of_text.

Splitting of text is only checked with Llama 3's vocabulary: other vocabularies have no known reference.
"""

import json
from pathlib import Path
from typing import Any

from puna.formats.checkpoint.safe_files import find_file
from puna.formats.tokenizer.files import NUM_LLAMA3_RANKS, SPECIAL_TEXTS, SPLIT_PATTERN
from puna.formats.tokenizer.tokenizer import Tokenizer
from puna.pipeline.errors import CheckpointError
from puna.planning.doctor.hf.added import check_added, describe_tokens
from puna.planning.doctor.hf.opened import CONFIG, TOKENIZER_CONFIG, Opened, find_safely
from puna.planning.doctor.report import Report, listed

TOKENIZER, RANKS = "tokenizer.json", "tokenizer.model"
MAX_TOKENIZER_BYTES = 64 * 2**20
GOLDEN_TEXT, GOLDEN_IDS = "This is a test sentence.", [2028, 374, 264, 1296, 11914, 13]
# Special tokens with a meaning, as offsets behind the regular tokens.
NAMED = {text[2:-2]: index for index, text in enumerate(SPECIAL_TEXTS) if not text.startswith("<|reserved")}
BEGIN = "<|begin_of_text|>"


def check_tokenizer(opened: Opened) -> None:
    """Report problems of the tokenizer, and set `opened.tokenizer` if readable."""
    report = opened.report
    names = [name for name in (TOKENIZER, RANKS) if find_safely(opened.path, name)]
    if not names:
        remedy = "Copy tokenizer.json from the model that these weights come from; weights mean nothing without it"
        report.add("tokenizer-missing", ".", f"neither {TOKENIZER} nor {RANKS}", remedy)
        return
    with report.attempt("file-unreadable", names[0]):
        path = find_file(opened.path, names[0])
        assert path
        data = _read_checked(path, is_json=names[0] == TOKENIZER)
        opened.tokenizer = Tokenizer.load(opened.path / names[0])  # the name tells the format
        report.facts["tokenizer"] = describe_tokens(opened.tokenizer)
        check_specials(opened.tokenizer, names[0], report)
        check_added(opened, data)
        _check_split(opened.tokenizer, data, report)
        if data:
            _check_begin(data, opened)


def _read_checked(path: Path, *, is_json: bool) -> Any:
    """Return the JSON of a tokenizer file, or {} for another format.

    Raises:
        CheckpointError: The file is too large or malformed.
    """
    size = path.stat().st_size
    if size > MAX_TOKENIZER_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes", expected=f"at most {MAX_TOKENIZER_BYTES:,} bytes")
    try:
        return json.loads(path.read_bytes()) if is_json else {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({ascii(str(error))[1:-1][:200]})") from None


def check_specials(tokenizer: Tokenizer, where: str, report: Report) -> None:
    """Report missing special tokens of Llama 3.1 and, with Llama 3's vocabulary, wrong ids."""
    missing = [name for name in NAMED if name not in tokenizer.special_ids]
    if missing:
        remedy = "Take the tokenizer of a Llama 3.1; Llama 3.0's has none of the tools' and padding tokens"
        report.add(
            "special-missing", where, f"no {listed(missing, most=8)}; expected Llama 3.1's special tokens", remedy
        )
    if tokenizer.num_regular != NUM_LLAMA3_RANKS:
        return
    moved = [
        f"{name} is {tokenizer.special_ids[name]} instead of {NUM_LLAMA3_RANKS + index}"
        for name, index in NAMED.items()
        if name in tokenizer.special_ids and tokenizer.special_ids[name] != NUM_LLAMA3_RANKS + index
    ]
    if moved:
        remedy = "Copy the tokenizer of the model that these weights come from"
        report.add("special-misplaced", where, f"{listed(moved)}", remedy)


def _check_split(tokenizer: Tokenizer, data: Any, report: Report) -> None:
    if tokenizer.num_regular != NUM_LLAMA3_RANKS:
        return
    remedy = "Copy tokenizer.json from the model that these weights come from"
    patterns = [step["pattern"].get("Regex") for step in _steps(data, "pre_tokenizer") if _is_split(step)]
    if data and patterns != [SPLIT_PATTERN]:
        report.add("split-differs", TOKENIZER, "another split pattern than Llama 3's", remedy)
    elif tokenizer.encode(GOLDEN_TEXT) != GOLDEN_IDS:
        ids = tokenizer.encode(GOLDEN_TEXT)
        what = f'"{GOLDEN_TEXT}" becomes {ids[:8]}; expected {GOLDEN_IDS}, as Llama 3 has it'
        report.add("tokenizer-differs", TOKENIZER, what, remedy)


def _is_split(step: dict[str, Any]) -> bool:
    return step.get("type") == "Split" and isinstance(step.get("pattern"), dict)


def _steps(data: Any, key: str) -> list[dict[str, Any]]:
    """Return a section of tokenizer.json as a list of steps; a section is a single step or a sequence."""
    section = data.get(key) if isinstance(data, dict) else None
    if not isinstance(section, dict):
        return []
    inner = next((section[name] for name in ("pretokenizers", "processors") if name in section), [section])
    return [step for step in inner if isinstance(step, dict)] if isinstance(inner, list) else []


def _check_begin(data: Any, opened: Opened) -> None:
    """Report a begin_of_text that tokenizer and chat template add zero times or twice."""
    num_begins = sum(_num_begins(step) for step in _steps(data, "post_processor"))
    report = opened.report
    if num_begins > 1:
        remedy = "Remove all but one from the post_processor in tokenizer.json"
        report.add("bos-doubled", TOKENIZER, f"{num_begins} begin_of_text before each text; expected one", remedy)
    elif not num_begins and opened.tokenizer and "begin_of_text" in opened.tokenizer.special_ids:
        remedy = "Copy the post_processor from Meta's tokenizer.json: without begin_of_text a Llama 3 answers worse"
        report.add("bos-missing", TOKENIZER, "no begin_of_text before a text; expected one", remedy)
    writes = opened.template is not None and (BEGIN in opened.template or "bos_token" in opened.template)
    if writes and opened.json[TOKENIZER_CONFIG].get("add_bos_token") is True:
        what = "add_bos_token is on, and the chat template writes begin_of_text as well; expected one of them"
        report.add("bos-doubled", TOKENIZER_CONFIG, what, "Remove add_bos_token, or set it to false")
    elif writes and num_begins:
        report.facts["begin_of_text"] = (
            "written by the template and put first by the tokenizer, as in Meta's files: encode a rendered prompt with "
            "add_special_tokens=False, or it stands there twice"
        )


def _num_begins(step: dict[str, Any]) -> int:
    parts = step.get("single")
    specials = [part.get("SpecialToken") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return sum(isinstance(each, dict) and each.get("id") == BEGIN for each in specials)


def check_sizes(opened: Opened) -> None:
    """Compare the sizes of tokenizer, config.json and embeddings."""
    embeddings = opened.layout.get("model.embed_tokens.weight")
    rows = embeddings.shape[0] if embeddings and len(embeddings.shape) == 2 else None
    stated_rows = opened.config.vocab_size if opened.config else None
    report = opened.report
    if rows is not None and stated_rows is not None and rows != stated_rows:
        what = f"vocab_size = {stated_rows:,}, but the embeddings have {rows:,} rows; expected the same"
        report.add("vocab-differs", CONFIG, what, f"Write vocab_size = {rows} if the weights are whole")
    size = rows if rows is not None else stated_rows
    if size is None or opened.tokenizer is None:
        return
    beyond = opened.tokenizer.vocab_size - size
    if beyond > 0:
        what = f"{opened.tokenizer.vocab_size:,} ids for {size:,} embeddings; expected no more ids than embeddings"
        remedy = "Resize the embeddings to the tokenizer and train them, or remove the tokens that were added"
        report.add("vocab-differs", TOKENIZER, what, remedy)
    elif beyond < 0:
        what = f"{size:,} embeddings for {opened.tokenizer.vocab_size:,} ids: {-beyond:,} rows belong to no token"
        remedy = "Nothing, if the rows are padding; a program that samples such an id has no text for it"
        report.add("vocab-padded", CONFIG, what, remedy)
