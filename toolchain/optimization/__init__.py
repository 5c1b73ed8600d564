"""Clean-up: the list of passes over a float graph, each checked to keep what the model computes."""
