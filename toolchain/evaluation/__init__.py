"""Measures of a model's quality: fidelity of the outputs, agreement with a reference, the user's own metric."""
