"""Structured pruning to a goal: options, importance, search, repair; and sparsity, which saves bytes alone."""
