"""What a source holds, kind by kind: what `tcl.data.inputs.listing` is made of."""
