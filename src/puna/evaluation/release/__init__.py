"""Release: a checkpoint and its scores -> a directory that may be handed on, with licences and a model card."""
