"""Vectors on disk: files, parts, dtypes, and products with what is stored. Knows no model."""
