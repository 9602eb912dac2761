"""What `import tcl` shows: the public names, and nothing else."""

from __future__ import annotations

import rlcompleter

import tcl


def test_dir_and_completion_show_the_api() -> None:
    assert dir(tcl) == ["Embedder", "TCL", "__version__", "load"]
    complete = rlcompleter.Completer({"tcl": tcl}).complete
    found = {str(complete("tcl.", number)).rstrip("()") for number in range(3)}
    assert found == {"tcl.Embedder", "tcl.TCL", "tcl.load"}
