"""What the server does for browsers: the chat page, and cross-origin requests (CORS)."""
