"""The version of this package, and of those it stands on: which are installed, and what is missing.

None of them is imported: that works where they are missing. What looks them up is imported when it is asked, because
`import tcl` loads this file.
"""

from __future__ import annotations

import re
from pathlib import Path

__version__ = "0.1.0"
DISTRIBUTION = "tcl-vision-language"
ROOT = Path(__file__).parents[1]  # of a checkout


def installed_version(package: str) -> str | None:
    """The version of an installed distribution; None where it is missing."""
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, list[str]]:
    """The optional extras and the packages of each, as the package itself declares them."""
    from importlib import metadata

    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return _declared_in_checkout()
    found: dict[str, list[str]] = {}
    for line in declared:
        if extra := re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", line):
            found.setdefault(extra.group(1), []).append(line)
    return _packages(found)


def _declared_in_checkout() -> dict[str, list[str]]:
    import tomllib

    try:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return {}
    return _packages(project["optional-dependencies"])


def _packages(declared: dict[str, list[str]]) -> dict[str, list[str]]:
    """Names of the packages of each extra; one that stands for others has theirs."""

    def names(line: str) -> list[str]:
        own = re.match(rf"{DISTRIBUTION}\[([^\]]*)\]", line)
        if own is None:
            return [_name(line)]
        lines = [line for extra in own[1].split(",") for line in declared.get(extra.strip(), ())]
        return [name for line in lines for name in names(line)]

    return {extra: [name for line in lines for name in names(line)] for extra, lines in declared.items()}


def _name(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0]


def git_commit() -> str | None:
    """The commit that this code was checked out at, and `+` when files differ; None for an installed copy."""
    import subprocess

    if not (ROOT / ".git").exists():  # or it could be the repository of whoever has a virtual environment in theirs
        return None
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    import subprocess

    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()


def versions() -> dict[str, str]:
    """What decides how a run turns out: Python, this package and its commit, torch and what stands beside it."""
    import platform

    found = {"python": platform.python_version(), "tcl": __version__, "commit": git_commit()}
    found |= {name: installed_version(name) for name in ("torch", "torchvision", "timm", "transformers", "numpy")}
    return {name: version for name, version in found.items() if version}
