"""Objectives of distillation: live teacher, stored logits, two tokenizers, on-policy answers."""
