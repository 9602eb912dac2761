"""What runs a model: torch, ONNX Runtime and TensorRT behind one protocol. Knows no job and no search."""
