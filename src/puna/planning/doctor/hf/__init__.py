"""A directory in Hugging Face layout -> findings, one file for each thing that can be wrong."""
