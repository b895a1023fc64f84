"""Checks of a checkpoint directory, GGUF file, adapter or Modelfile, with a remedy for every problem."""
