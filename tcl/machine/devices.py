"""Where torch computes."""

from __future__ import annotations

import os

from tcl.errors import UsageError


def choose_device(name: str = "auto", one_of_several: bool = False) -> str:
    """`cpu` or `cuda`; `auto` takes a GPU when there is one.

    Args:
        name: `auto`, `cpu` or `cuda`.
        one_of_several: the command shares its work among the processes of `torchrun`.

    Raises:
        UsageError: a GPU was asked for and torch sees none, or several processes were started for nothing.
    """
    import torch

    if not one_of_several and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("this command runs in one process, but WORLD_SIZE is set", hint="start it without torchrun")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("--device cuda: torch sees no GPU", hint="check `nvidia-smi`, or use --device cpu")
    return "cuda" if name == "cuda" or (name == "auto" and available) else "cpu"
