"""Memory-saving backward passes, and padding to few distinct shapes."""
