"""Training by a recipe, in torch: pruning, weight sharing, quantization-aware training, distillation."""
