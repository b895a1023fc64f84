"""Agents: conversations of a person with a model; at present the chat in the terminal."""
