"""The published figures of each task. Knows no training."""
