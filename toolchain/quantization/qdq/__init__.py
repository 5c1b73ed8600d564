"""Quantized models as files: written as QuantizeLinear and DequantizeLinear pairs, audited, and read again."""
