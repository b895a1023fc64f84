"""Conversations and their tokens."""

from puna.chat.conversation import Conversation, Message, ToolCall
from puna.chat.format import ChatFormat, Encoded

__all__ = ["ChatFormat", "Conversation", "Encoded", "Message", "ToolCall"]
