"""Answers of a model: the engine on this machine, and one interface for local models and endpoints."""
