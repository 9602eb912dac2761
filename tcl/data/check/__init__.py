"""Is data fit for training? Reads, counts, and changes nothing."""
