"""Overload protection: equal shares of a queue for every tenant, and a separate thread for large requests."""
