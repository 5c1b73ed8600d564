"""Proofs that an int8 model computes the same integers on every processor: scales, rounding ties, the certificate."""
