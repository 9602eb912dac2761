"""Vision-language pre-training with triple contrastive learning (Yang et al., CVPR 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tcl.version import __version__

if TYPE_CHECKING:
    from tcl.encoders.embedder import Embedder
    from tcl.encoders.open import load
    from tcl.weights.load import TCL

__all__ = ["TCL", "Embedder", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # `import tcl` stays free of torch: a deployer's machine may not have it.
    if name == "TCL":
        from tcl.weights.load import TCL

        return TCL
    if name == "Embedder":
        from tcl.encoders.embedder import Embedder

        return Embedder
    if name == "load":
        from tcl.encoders.open import load

        return load
    raise AttributeError(f"module 'tcl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
