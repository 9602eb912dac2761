"""From bytes to samples. Knows no model."""
