"""Estimates of a recipe's steps before they run: known facts about their inputs, and this machine's speed."""
