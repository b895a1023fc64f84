"""Conversations and the prompt format: messages <-> token ids."""

from puna.formats.chat.conversation import Conversation, Message, ToolCall
from puna.formats.chat.format import ChatFormat, Encoded

__all__ = ["ChatFormat", "Conversation", "Encoded", "Message", "ToolCall"]
