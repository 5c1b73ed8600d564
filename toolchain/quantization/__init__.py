"""Static int8: choose nodes, plan numbers, write QDQ, and check that onnxruntime runs what was planned."""
