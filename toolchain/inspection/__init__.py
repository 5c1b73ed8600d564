"""The content of a model: operators, cost, precision, channel groups, and the fit to a target. It renders nothing."""
