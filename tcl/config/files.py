"""Recipes as files: the shipped ones by name, the user's own by path, and single settings given as `key=value`.

A YAML key that stands twice is an error: PyYAML would take the last and say nothing.
"""

from __future__ import annotations

import difflib
import os
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from tcl.errors import ConfigError, reason_of

LARGEST = 200_000  # bytes of a recipe
DEEPEST = 50  # levels
MOST_NODES = 100_000  # values, aliases written out


def read_yaml(path: Path) -> Any:
    """What a file holds.

    Raises:
        ConfigError: it is malformed, not UTF-8, has a key twice, or is larger than any recipe.
    """
    if path.stat().st_size > LARGEST:
        raise ConfigError(f"{path}: {path.stat().st_size:,} bytes are no recipe", hint=f"at most {LARGEST:,} are read")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not valid YAML: {reason_of(error)}", hint="tcl recipes show demo prints a valid one"
        ) from error


def parse_yaml(text: str) -> Any:
    """What a text says.

    Raises:
        yaml.YAMLError: it is malformed, has a key twice, or is nested too deeply.
    """
    try:
        return yaml.load(text, _StrictLoader)
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # of a number, or a date, that is none
        raise yaml.YAMLError(f"a value that cannot be read: {reason_of(error)}") from error


class _StrictLoader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} levels deep, in line {self.line + 1}")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count_nodes(node, {})
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called before merge keys (`<<`) are resolved, whose keys may well be there already."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    first = lines[key.value]
                    place = f"line {line}" if first == line else f"lines {first} and {line}"
                    raise yaml.YAMLError(f"{key.value!r} stands there twice, in {place}")
                lines[key.value] = line
        super().flatten_mapping(node)


def _count_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node, written out: those that an alias (`*name`) stands for count each time.

    An anchor comes before its aliases, so this never goes deeper than the text.
    """
    count = known.get(id(node))
    if count == 0:
        raise yaml.YAMLError("an alias that stands for what it is in")
    if count is None:
        known[id(node)] = 0
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = chain.from_iterable(below) if isinstance(node, yaml.MappingNode) else below
        count = known[id(node)] = 1 + sum(_count_nodes(each, known) for each in inner)
    if count > MOST_NODES:
        raise yaml.YAMLError(f"aliases that stand for more than {MOST_NODES:,} values")
    return count


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


def apply_override(values: dict[str, Any], override: str) -> None:
    """Put `section.key=value` into a nested mapping; the value is YAML.

    Raises:
        ConfigError: it is not of that form, or has a key twice.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{override!r} is no setting", hint="write section.key=value, for example optim.lr=2.0e-4")
    *sections, name = key.strip().split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {section!r} holds a value, not settings")
        values = inner
    try:
        values[name] = parse_yaml(text) if text else None
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or reason_of(error)
        raise ConfigError(f"{override!r}: the value is not valid YAML: {reason}") from error
