"""JSON schemas of clients -> schemas that a grammar can hold, with notes on every keyword that was left out."""
