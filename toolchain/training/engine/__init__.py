"""The training loop and what it is made of: the graph in torch, the objective, samples, checkpoints."""
