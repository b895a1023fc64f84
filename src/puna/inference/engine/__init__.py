"""Engine: token ids -> more token ids, many requests at once, behind the Sampler interface."""
