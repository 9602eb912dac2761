"""What a source holds, whatever its kind: its files, columns and records. Knows nothing of what they are used for."""
