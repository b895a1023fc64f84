"""Sampling: logits -> next tokens."""
