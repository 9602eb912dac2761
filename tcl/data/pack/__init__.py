"""Any source of pairs to tar shards of small images. Knows no training."""
