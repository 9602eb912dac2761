"""Nearest vectors, exact or by an index, re-ranking, duplicates, the page of hits. Knows encoders by protocol."""
