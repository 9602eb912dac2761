"""Built-in rendered scenes with captions and labels. Reads no files."""
