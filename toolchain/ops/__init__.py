"""What is known of each ONNX operator, one row of one table: its channels, its int8 kernel, its cost."""
