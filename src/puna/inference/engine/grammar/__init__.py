"""Grammar: what an answer must look like, held while it is sampled."""
