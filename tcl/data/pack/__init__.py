"""Any source to tar shards of small images. Knows no training."""
