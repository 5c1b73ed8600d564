"""Clean-up: the list of passes over a float graph, and the check that the model still computes the same."""
