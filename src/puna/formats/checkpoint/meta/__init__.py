"""Meta's checkpoint format: params.json, consolidated.NN.pth and tokenizer.model."""
