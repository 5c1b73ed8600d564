"""Which channels of a graph can only be removed together, removing them, and the proof that it was done right."""
