"""Browser support of the server: the chat page, and cross-origin requests (CORS)."""
