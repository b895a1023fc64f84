"""The files beside tokenizer.json that say more about added tokens -> the added tokens that transformers would use.

transformers 5 adds tokens that only tokenizer_config.json (`added_tokens_decoder`) or the older added_tokens.json name,
and takes a token as special if its entry there says so or if the token is named for a role. The lists
`additional_special_tokens` and `extra_special_tokens` do not change a token that tokenizer.json has.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puna.errors import TokenizerError
from puna.tokenizer.added import AddedToken

CONFIG_NAME, OLD_NAME = "tokenizer_config.json", "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_BYTES = 64 * 2**20


def read_beside(directory: Path, added: Mapping[str, AddedToken]) -> dict[str, AddedToken]:
    """Return the added tokens by their texts, with what the files in `directory` say about them.

    Raises:
        TokenizerError: a file beside tokenizer.json is malformed.
    """
    config = _read(directory / CONFIG_NAME)
    named = {text for role in ROLES if (text := _text(config.get(role)))}
    beside = _told(directory / CONFIG_NAME, config.get("added_tokens_decoder"))
    if "added_tokens_decoder" not in config:
        entries = _read(directory / OLD_NAME).items()
        told = {str(index): {"content": text, "special": text in named} for text, index in entries}
        beside = _told(directory / OLD_NAME, told)
    found = dict(added)
    for token in beside:
        known = found.get(token.text)
        is_special = token.is_special or (known is not None and known.is_special)
        found[token.text] = (known or token)._replace(is_special=is_special)
    return found | {text: found[text]._replace(is_special=True) for text in named if text in found}


def _told(path: Path, entries: Any) -> list[AddedToken]:
    """Read {"128256": {"content": ..., "special": ...}}."""
    if not entries:
        return []
    try:
        return [AddedToken.parse({"special": False, **entry, "id": int(index)}) for index, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        given = f"{path}: added tokens ({type(error).__name__}: {error})"
        raise TokenizerError(given, expected="an id for each text", hint="Copy the file again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return {}
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error})", expected="a JSON object") from error
    return data if isinstance(data, dict) else {}


def _text(value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
