"""Meta's tokenizer with our chat format, as several tests of chat use it."""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from puna.formats.chat import ChatFormat
from puna.formats.tokenizer import Tokenizer

META_MODEL = Path(str(files("llama_models") / "llama3" / "tokenizer.model"))


@cache
def chat() -> ChatFormat:
    return ChatFormat(llama())


@cache
def llama() -> Tokenizer:
    return Tokenizer.load(META_MODEL)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


def ids_of(text: str) -> list[int]:
    """The ids of a written-out prompt: special tokens where they are spelled, the rest as text."""
    ids: list[int] = []
    for index, part in enumerate(text.replace("|>", "<|").split("<|")):
        ids += [llama().special(part)] if index % 2 else llama().encode(part)
    return ids
