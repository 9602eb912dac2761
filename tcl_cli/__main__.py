"""`python -m tcl_cli`, the form `torchrun -m` needs."""

from __future__ import annotations

from tcl_cli.main import main

main()
