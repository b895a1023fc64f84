"""Inference: the engine on the machine, and completers for local models and endpoints."""
