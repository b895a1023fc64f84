"""Training objectives: encoding of rows and losses, one file per objective."""
