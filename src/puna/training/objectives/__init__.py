"""What can be minimized: a file for each way to train."""
