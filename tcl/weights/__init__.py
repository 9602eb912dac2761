"""Weights on disk: finding, reading, converting and writing them, by every known layout. Knows no training."""
