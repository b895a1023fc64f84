"""Inference: the engine on this machine, and completers for local models and endpoints."""
