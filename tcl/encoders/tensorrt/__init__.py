"""Engines of TensorRT: built from the graphs of a bundle, kept beside them, and run. Knows bundles, no models."""
