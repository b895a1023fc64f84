"""Conversations -> the next message of an assistant, from a checkpoint loaded in-process or an endpoint."""
