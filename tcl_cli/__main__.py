"""`python -m tcl_cli`, for where the `tcl` script is not on the PATH."""

from __future__ import annotations

from tcl_cli.main import main

main()
