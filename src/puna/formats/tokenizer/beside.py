"""The files beside tokenizer.json with more added tokens -> the added tokens of transformers.

transformers 5 adds the tokens of tokenizer_config.json (`added_tokens_decoder`) or of the older added_tokens.json. A
token is special if the entry there says so, or if the token has a role. The lists
`additional_special_tokens` and `extra_special_tokens` do not change a token that tokenizer.json has.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from puna.formats.tokenizer.added import AddedToken
from puna.pipeline.errors import TokenizerError

CONFIG_NAME, OLD_NAME = "tokenizer_config.json", "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_BYTES = 64 * 2**20


class Beside(NamedTuple):
    """Added tokens and roles from the files beside tokenizer.json. Example: see `read_beside`.

    Attributes:
        name: source file of the tokens.
        tokens: added tokens with ids.
        named: texts of tokens with a role, such as eos_token.
    """

    name: str
    tokens: tuple[AddedToken, ...]
    named: frozenset[str]


def read_beside(directory: Path) -> Beside:
    """Read tokenizer_config.json, and added_tokens.json where the former lists no added tokens.

    Raises:
        TokenizerError: an entry is malformed. A file that is not JSON counts as empty (checkpoint.py refuses it).
    """
    config = _read(directory / CONFIG_NAME)
    named = frozenset(text for role in ROLES if (text := role_text(config.get(role))))
    if "added_tokens_decoder" in config:
        return Beside(CONFIG_NAME, _parse(directory / CONFIG_NAME, config["added_tokens_decoder"]), named)
    entries = _read(directory / OLD_NAME).items()
    decoder = {str(index): {"content": text, "special": text in named} for text, index in entries}
    return Beside(OLD_NAME, _parse(directory / OLD_NAME, decoder), named)


def with_beside(added: Mapping[str, AddedToken], beside: Beside) -> dict[str, AddedToken]:
    """Return the added tokens of tokenizer.json by text, with the changes of the files beside."""
    tokens = dict(added)
    for token in beside.tokens:
        known = tokens.get(token.text, token)
        tokens[token.text] = known._replace(is_special=known.is_special or token.is_special)
    return tokens | {text: tokens[text]._replace(is_special=True) for text in beside.named if text in tokens}


def role_text(value: Any) -> str | None:
    """Return the text of a token in tokenizer_config.json: a string, or an object with `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _parse(path: Path, entries: Any) -> tuple[AddedToken, ...]:
    """Read {"128256": {"content": ..., "special": ...}}."""
    if not entries:
        return ()
    try:
        return tuple(
            AddedToken.parse({"special": False, **entry, "id": int(index)}) for index, entry in entries.items()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        given = f"{path}: added tokens ({type(error).__name__}: {error})"
        raise TokenizerError(given, expected="a token id for every text", hint="Copy the file again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes()) if path.is_file() and path.stat().st_size <= MAX_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
