"""Weights stored in fewer bytes: as float16, or as indices into a codebook."""
