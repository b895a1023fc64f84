"""Checked requests -> prompts within the context, grammars and sampling parameters for the engine."""
