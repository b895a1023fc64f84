"""Recipes: parse recipe files, forecast steps, and execute steps into artifacts."""
