"""File formats of tokenizers, chat templates and checkpoints, as used by Meta, Hugging Face and llama.cpp."""
