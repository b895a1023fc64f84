"""One training run over many processes: layout, what is done to the network, what is done to a batch, states."""
