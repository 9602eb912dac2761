"""What a source holds, kind by kind: what `tcl.inputs` is made of."""
