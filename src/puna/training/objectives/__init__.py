"""Training objectives: encoding of rows and losses, a file per objective."""
