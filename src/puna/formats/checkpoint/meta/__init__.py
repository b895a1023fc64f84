"""Meta's own format (params.json, tokenizer.model, consolidated.NN.pth) <-> a Source."""
