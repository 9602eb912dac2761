"""The embedding job: what `tcl.embed` is made of."""
