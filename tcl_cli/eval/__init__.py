"""`tcl eval`: one file per task."""
