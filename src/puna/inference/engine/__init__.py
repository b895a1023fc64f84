"""Engine: token ids -> more token ids, many requests at once; `LocalSampler` is the interface."""
