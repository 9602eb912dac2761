"""The devices to compute on: what `--device` and `--devices` name, and which GPUs this process may use."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec

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


def parse_devices(text: str, here: bool = True) -> list[str]:
    """Devices by name: `auto` (one), `all` GPUs, `0,1`, `cuda:0,cuda:1`, `cpu`, or `cpu,cpu` for two processes.

    Args:
        text: the names.
        here: they are devices of this machine, and looked for; `all` is known here alone.

    Returns:
        `auto`, or any number of `cpu`, `cuda` and `cuda:<n>`.

    Raises:
        UsageError: a name that is none, a GPU named twice, or no GPU is there.
    """
    if text == "all":
        count = count_gpus()
        if not count:
            raise UsageError("--devices all: no GPU is visible", hint="check `nvidia-smi`, or use --devices cpu")
        return [f"cuda:{number}" for number in range(count)]
    names = [f"cuda:{name}" if _is_number(name) else name for name in (part.strip() for part in text.split(","))]
    for name in names:
        numbered = name.startswith("cuda:") and _is_number(name[5:])
        if not (numbered or name in ("cpu", "cuda") or names == ["auto"]):
            raise UsageError(f"--devices {text}: {name!r} is no device", hint="auto, all, cpu, 0,1 or cuda:0,cuda:1")
        if name != "cpu" and names.count(name) > 1:
            raise UsageError(f"--devices {text}: {name} is named twice", hint="one process per GPU is the fastest")
    if not here:
        return names
    visible = count_gpus() if any(name.startswith("cuda:") for name in names) else 0
    for name in names:
        if name.startswith("cuda:") and int(name[5:]) >= visible:
            raise UsageError(f"--devices {text}: {visible} GPUs are visible, no {name}", hint="check `nvidia-smi`")
    return names


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def count_gpus() -> int:
    """GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    if find_spec("torch") is not None:
        import torch

        return torch.cuda.device_count()
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def use_device(name: str) -> str:
    """Leave this process one GPU, before torch or ONNX Runtime looks for them; what to ask them for then."""
    if name.startswith("cuda:"):
        number = int(name[5:])
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number].strip() if visible else str(number)
        return "cuda"
    return name
