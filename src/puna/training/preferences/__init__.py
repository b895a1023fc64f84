"""What dpo and reward have in common: their settings, and the reference that training is measured against."""
