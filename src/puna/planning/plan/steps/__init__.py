"""Estimates of a recipe's steps before the run: known facts about the inputs, and the speed of the machine."""
