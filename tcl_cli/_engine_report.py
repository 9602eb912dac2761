"""What `tcl export --trt` says of its engines, and how it ends when one of them is off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tcl_cli._console import out as console
from tcl_cli._export_report import show_table

if TYPE_CHECKING:
    from export.verify.engines import VerifiedEngine
    from tcl.encoders.tensorrt.engine import BuiltEngine, Sidecar


def show_engines(found: Sequence[VerifiedEngine]) -> None:
    """A line for each, then the table of what was compared."""
    for engine, _ in found:
        size = engine.path.stat().st_size / 1e6
        state = "built" if engine.new else "there"
        console.message(f"  {state}  {engine.path}  {size:.1f} MB  {_verdict(engine.sidecar)}")
    if checks := [check for _, checks in found for check in checks]:
        show_table(checks)


def engines_json(engines: Sequence[BuiltEngine]) -> dict[str, Any]:
    """Where the engines are, and for each whether it was verified and what was found."""
    return {
        "engines": [str(engine.path) for engine in engines],
        "engine_verification": {
            str(engine.path): {"verified": engine.sidecar.verified, **engine.sidecar.verification} for engine in engines
        },
    }


def check_engines(engines: Sequence[BuiltEngine]) -> None:
    """End the command where an engine computes something else.

    Raises:
        VerificationError: names the first of them.
    """
    from tcl.errors import VerificationError

    for engine in engines:
        if engine.sidecar.verified is False:
            check = next(check for check in engine.sidecar.verification["checks"] if not check["passed"])
            raise VerificationError(
                f"{engine.path}: {check['subject']}: {check['detail']}",
                hint="the engine is kept for inspection and marked unverified; do not deploy it",
            )


def _verdict(sidecar: Sidecar) -> str:
    if sidecar.verified is None:
        return f"not verified: {sidecar.verification['not_run']}"
    return "verified" if sidecar.verified else "FAILED"
