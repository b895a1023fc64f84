"""JSON bodies of the OpenAI API -> checked requests."""
