"""Pruning the graph: index spaces, groups, cuts and their proof, importance, repair, widths.

A stage: it knows the graph and the table of operators, and no other stage.
"""
