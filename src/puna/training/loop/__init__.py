"""The one training loop: settings, state, optimizer, steps."""
