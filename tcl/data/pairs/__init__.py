"""Records as image-text pairs. Knows no loss and no loader."""
