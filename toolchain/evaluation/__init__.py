"""How much of a model's answer is left: fidelity of the outputs, agreement with a reference, the user's own metric."""
