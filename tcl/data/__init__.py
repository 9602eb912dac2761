"""From bytes to samples. Knows no model; below it are only files, this machine and the recipe."""
