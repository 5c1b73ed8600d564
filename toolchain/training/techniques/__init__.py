"""What a training step changes: masks, codebooks, fake quantization."""
