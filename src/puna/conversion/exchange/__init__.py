"""Import and export: checkpoints in the formats of Meta, Hugging Face and llama.cpp <-> checkpoints of Puna."""
