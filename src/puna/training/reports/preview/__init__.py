"""Data summary and estimate of time and memory before the first step."""
