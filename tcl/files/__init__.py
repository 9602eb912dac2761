"""Files that exist whole or not at all: atomic writes, locks, cache, remote places, names. Knows no model, no data."""
