"""Nearest vectors, exact or by an index, re-ranking, duplicates, and the page that shows them. Trains nothing."""
