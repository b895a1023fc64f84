"""Arithmetic about models: parameters, memory, FLOPs, time and cost, before anything is run."""
