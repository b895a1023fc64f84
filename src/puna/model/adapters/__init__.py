"""LoRA adapters: low-rank matrices beside the linear layers of a frozen network."""
