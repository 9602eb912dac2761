"""Recipes: their types, and where they are read from. Knows nothing of what they configure."""
