"""A torch module, a ``.pt2`` or an ``.onnx`` file becomes a checked ONNX model, and is compared with it."""
