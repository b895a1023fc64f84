"""Conversations -> the next message of an assistant, from a checkpoint in this process or an endpoint."""
