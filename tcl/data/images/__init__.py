"""From bytes to pixels: decoding, resizing, training views. Knows no table and no source."""
