"""The training loop: initial model, optimizer, steps, saved states, observers."""
