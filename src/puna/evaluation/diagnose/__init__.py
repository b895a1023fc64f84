"""Records of training runs, and scores -> findings: likely causes of a weak model, in words."""
