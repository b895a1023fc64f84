"""Artifacts: directories with a manifest, receipts, licences and lineage."""
