"""edge-toolchain: from a PyTorch or ONNX model to a small, fast, verified int8 model for each target."""
