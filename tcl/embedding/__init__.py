"""The embedding job: what `tcl.embedding.run` is made of."""
