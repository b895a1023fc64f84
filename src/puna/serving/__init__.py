"""An engine -> HTTP: the OpenAI-compatible API with keys and limits."""
