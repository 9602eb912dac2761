"""`tcl pretrain` and `tcl finetune`: the run folder, the plan of a run, and its progress on the terminal."""
