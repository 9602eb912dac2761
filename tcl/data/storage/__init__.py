"""Where the bytes of an image are: a file, a URL, a tar member, a cell of a table. Decodes nothing."""
