"""Documents and conversations on disk, in an order that can be resumed, packed into batches."""
