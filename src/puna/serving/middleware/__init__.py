"""Middleware, a concern per file: keys, hosts, HTTP syntax, concurrency, body limit, warnings."""
