"""Held-out rows, or built-in sentences -> short pieces of token ids, for comparing and calibrating models."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from puna.data.dataset import Dataset
from puna.data.document import Document
from puna.data.encode import encode_example
from puna.data.packing import Example
from puna.formats.chat.conversation import Conversation, Message
from puna.formats.chat.format import ChatFormat
from puna.formats.tokenizer import Tokenizer

# Texts for comparisons without a dataset: a sentence per language of Llama 3.1.
PROBES = (
    "The shop opens at nine, and the parcel 48151 is on its way.",
    "Der Laden öffnet um neun; das Paket wiegt 3,5 kg.",
    "Le magasin ouvre à neuf heures et ferme à dix-huit heures.",
    "Il negozio apre alle nove, ma la domenica è chiuso.",
    "A loja abre às nove e aceita cartões.",
    "दुकान सुबह नौ बजे खुलती है।",
    "La tienda abre a las nueve; ¿quiere devolver algo?",
    "ร้านเปิดเวลาเก้าโมงเช้า",
)


def cut_pieces(paths: Sequence[Path], tokenizer: Tokenizer, *, num_tokens: int, longest: int) -> Iterator[list[int]]:
    """Yield pieces of at most `longest` tokens from shuffled rows, `num_tokens` in total or until the data ends."""
    for example in cut_examples(paths, tokenizer, num_tokens=num_tokens, longest=longest):
        yield list(example.ids)


def cut_examples(paths: Sequence[Path], tokenizer: Tokenizer, *, num_tokens: int, longest: int) -> Iterator[Example]:
    """Yield the same pieces with their loss masks: see `encode_example`."""
    chat, dataset = ChatFormat(tokenizer), Dataset(paths)
    left = num_tokens
    for index in dataset.order(0, 0):
        row = dataset[int(index)]
        assert isinstance(row, Document | Conversation)
        example = encode_example(row, chat)
        for start in range(0, len(example.ids), longest):
            if left <= 0:
                return
            part = slice(start, start + min(longest, left))
            yield Example(example.ids[part], example.mask[part])
            left -= min(longest, left, len(example.ids) - start)


def held_out_pieces(
    paths: Sequence[Path], tokenizer: Tokenizer, *, num_tokens: int, longest: int
) -> Iterator[list[int]]:
    """Return pieces of held-out text for a comparison: see `cut_pieces`; without paths, the built-in texts."""
    if paths:
        return cut_pieces(paths, tokenizer, num_tokens=num_tokens, longest=longest)
    return probe_pieces(tokenizer, longest=longest)


def probe_pieces(tokenizer: Tokenizer, *, longest: int) -> Iterator[list[int]]:
    """Yield the built-in texts `PROBES`, for comparisons without a dataset."""
    chat = ChatFormat(tokenizer)
    dialogue = Conversation((Message("user", PROBES[0]), Message("assistant", PROBES[1])))
    for ids in (*map(chat.document, PROBES), chat.encode(dialogue).ids):
        yield ids[:longest]
