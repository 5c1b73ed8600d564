"""The operator table: one row for each ONNX operator with its channels, its int8 kernel and its cost."""
