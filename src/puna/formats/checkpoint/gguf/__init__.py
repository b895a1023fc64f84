"""GGUF, the file format of llama.cpp and Ollama: file -> Source, Source -> file, and an Ollama Modelfile."""
