"""Checkpoints of Llama models: Puna's directory in Hugging Face's layout; readers and writers of further formats."""
