"""Recipes, and how their steps become artifacts."""
