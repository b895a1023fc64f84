"""HTTP responses: JSON in pieces, server-sent events, disconnects, and a budget of log-probabilities."""
