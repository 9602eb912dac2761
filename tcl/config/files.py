"""Recipes as files: the shipped ones by name, the user's own by path. Imports no torch."""

from __future__ import annotations

import difflib
import os
from importlib.resources import files
from pathlib import Path

from tcl.errors import ConfigError


def recipe_folder() -> Path:
    """Where the shipped recipes are: inside the wheel, or the checkout's `recipes/`."""
    packaged = Path(str(files("tcl_cli"))) / "_recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Shipped recipes by name, those of pre-training first."""
    paths = sorted(recipe_folder().rglob("*.yaml"), key=lambda path: (path.parent.name != "pretrain", path))
    return {path.stem: path for path in paths}


def find_recipe(recipe: str | Path) -> Path:
    """A recipe file by path, or a shipped one by name.

    Raises:
        ConfigError: neither exists.
    """
    if os.path.isfile(recipe):
        return Path(recipe)
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    close = difflib.get_close_matches(str(recipe), shipped, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"shipped recipes: {', '.join(shipped)}; or give a path"
    raise ConfigError(f"no recipe {str(recipe)!r}: neither a file nor a shipped name", hint=hint)
