"""Artifacts on the disk: manifests and hashes, where an artifact comes from, under which licences it stands."""
