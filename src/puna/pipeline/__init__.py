"""How artifacts are made: errors, settings, the table of stages, recipes, runs, manifests, lineage, the registry."""
