"""Training with many processes: data (FSDP), tensor, pipeline and context parallelism."""
