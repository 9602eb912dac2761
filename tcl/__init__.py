"""Vision-language pre-training with triple contrastive learning (Yang et al., CVPR 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["TCL", "Embedder", "__version__", "load"]

if TYPE_CHECKING:
    from tcl.encoders.embedder import Embedder, load
    from tcl.models.tcl import TCL


def __getattr__(name: str) -> Any:
    # `import tcl` stays free of torch: a deployer's machine may not have it.
    if name == "TCL":
        from tcl.models.tcl import TCL

        return TCL
    if name in ("Embedder", "load"):
        import tcl.encoders.embedder

        return getattr(tcl.encoders.embedder, name)
    raise AttributeError(f"module 'tcl' has no attribute {name!r}")
