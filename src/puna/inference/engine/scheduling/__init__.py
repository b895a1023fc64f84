"""Scheduling: waiting and running requests -> the batch of the next step."""
