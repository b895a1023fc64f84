"""Checkpoint: a Hugging Face directory <-> a Llama and its tokenizer."""
