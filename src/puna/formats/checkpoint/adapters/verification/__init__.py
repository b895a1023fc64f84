"""Checks of a merge: base and adapter computed side by side, and the receipt of the differences."""
