"""`tcl eval`: the published metrics of each task, in one file per kind of task."""
