"""A model as ONNX graphs in a bundle, verified. Knows no command line."""
