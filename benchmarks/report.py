"""What the benchmarks say beside their figures: the date and the machine."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Date, hardware and version of torch."""
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {"date": datetime.date.today().isoformat(), "hardware": hardware, "torch": torch.__version__.split("+")[0]}


def write(figures: dict[str, Any], path: Path | None) -> None:
    """Print the figures, and keep them when a path is given."""
    text = json.dumps(figures, indent=2)
    print(text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
