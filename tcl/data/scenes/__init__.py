"""Built-in rendered scenes with captions and labels. Knows nothing but drawing."""
