"""JSON schemas of clients -> schemas for a grammar, with notes on every unsupported keyword."""
