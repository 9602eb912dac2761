"""Records as inputs of `tcl embed`, with their ids. Knows no encoder."""
