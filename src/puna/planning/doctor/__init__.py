"""A checkpoint directory, GGUF file, adapter or Modelfile -> what is wrong with it, in words, and what to do."""
