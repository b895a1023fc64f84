"""Release: a checkpoint and scores -> a directory to publish or deploy, with licences and a model card."""
