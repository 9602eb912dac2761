"""YAML in which no key stands twice: of two, PyYAML would take the last and say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tcl.errors import ConfigError, reason_of


def read_yaml(path: Path) -> Any:
    """What a file holds.

    Raises:
        ConfigError: it is malformed, not UTF-8, or has a key twice.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: not valid YAML: {reason_of(error)}", hint="tcl recipes show demo prints a valid one"
        ) from error


def parse_yaml(text: str) -> Any:
    """What a text says.

    Raises:
        yaml.YAMLError: it is malformed, or has a key twice.
    """
    return yaml.load(text, _StrictLoader)


class _StrictLoader(yaml.SafeLoader):
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
