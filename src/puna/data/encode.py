"""A document or a conversation -> an example: token ids and the loss mask.

The only place where a row becomes the token ids of a training or calibration example.
"""

from puna.data.document import Document
from puna.data.packing import Example
from puna.formats.chat.conversation import Conversation
from puna.formats.chat.format import ChatFormat


def encode_example(row: Document | Conversation, chat: ChatFormat, *, is_every_token: bool = False) -> Example:
    """Encode a row; all tokens of a document are trained, of a conversation only the assistant's.

    Args:
        row: Document or conversation to encode.
        chat: Prompt format of the model.
        is_every_token: Whether all tokens of a conversation are trained, as in pretraining.
    """
    if isinstance(row, Document):
        ids = chat.document(row.text)
        return Example(ids, [True] * len(ids))
    ids, mask = chat.encode(row)
    return Example(ids, [True] * len(ids) if is_every_token else mask)
