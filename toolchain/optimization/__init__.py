"""Clean-up of a float model: a list of passes, and the check that the model still computes the same."""
