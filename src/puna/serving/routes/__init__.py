"""Routes of the HTTP API: a file per endpoint."""
