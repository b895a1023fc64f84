"""Engine: token ids -> more token ids, many requests at once: scheduling, KV cache, sampling, runners."""
