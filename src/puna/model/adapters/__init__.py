"""LoRA adapters: the added layers, and networks that run several adapters in one batch."""
