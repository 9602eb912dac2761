"""Where torch computes."""

from __future__ import annotations

import os

from tcl.errors import UsageError


def choose_device(name: str = "auto") -> str:
    """`cpu` or `cuda`; `auto` takes a GPU when there is one.

    Raises:
        UsageError: a GPU was asked for and torch sees none, or several processes were started.
    """
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("tcl runs in one process as yet, but WORLD_SIZE is set", hint="start it without torchrun")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch sees no GPU", hint="check `nvidia-smi`, or use --device cpu")
    return "cuda" if name == "cuda" or (name == "auto" and available) else "cpu"
