"""The parts of a Hugging Face checkpoint: config.json, generation_config.json and the weights."""
