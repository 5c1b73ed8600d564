"""Training techniques: pruning masks, codebooks, fake quantization, quantization-aware training."""
