"""Settings that replace those of a recipe, as they are written on the command line."""

from __future__ import annotations

from typing import Any

import yaml

from tcl.errors import ConfigError, reason_of
from tcl.strict_yaml import parse_yaml


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
