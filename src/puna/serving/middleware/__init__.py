"""HTTP requests before any route sees them: keys, hosts, sizes, connections."""
