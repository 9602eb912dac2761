"""JSON that this code wrote, read back: whatever became of it meanwhile, the complaint is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
_LARGEST = 1 << 63  # whole number
_INFINITE = 1e300

Shape = Any
"""What a value has to be: `str`, `bool`, `int` (from 0), `float` (finite), `dict`, `list`; `[shape]` a list of such
values; `{"name": shape, "name?": shape}` an object, of which the second may be missing or null; `{"*": shape}` one with
any names; a tuple of shapes, any of them."""


class Malformed(ValueError):
    """A file is no JSON object, or lacks what it has to hold."""


def read_object(path: Path, shape: Mapping[str, Shape]) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: of a file of at most 64 MB.
        shape: of it; members that it does not name are not looked at.

    Raises:
        OSError: it cannot be read.
        Malformed: it is something else.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise Malformed(f"larger than {MAX_BYTES >> 20} MB")
    return parse_object(content, shape)


def parse_object(content: str | bytes, shape: Mapping[str, Shape]) -> dict[str, Any]:
    """The JSON object in a text.

    Raises:
        Malformed: it is something else.
    """
    try:
        values = json.loads(content)
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8 text") from error
    except RecursionError as error:
        raise Malformed("nested too deeply") from error
    except ValueError as error:
        raise Malformed(f"malformed JSON: {error}") from error
    if problem := _mismatch(values, shape, ""):
        raise Malformed(problem)
    found: dict[str, Any] = values
    return found


def _mismatch(value: Any, shape: Shape, name: str) -> str | None:
    """What is wrong with a value, in words; None where nothing is."""
    if isinstance(shape, tuple):
        problems = [_mismatch(value, each, name) for each in shape]
        return problems[0] if all(problems) else None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name or 'it'} is not a list"
        problems = [_mismatch(item, shape[0], f"{name}[{place}]") for place, item in enumerate(value)]
        return next(filter(None, problems), None)
    if isinstance(shape, dict):
        return _mismatch_of_object(value, shape, name)
    word, is_good = _KINDS[shape]
    return None if is_good(value) else f"{name} is not {word}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _INFINITE


_KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    str: ("a string", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    dict: ("an object", lambda value: isinstance(value, dict)),
    list: ("a list", lambda value: isinstance(value, list)),
    int: ("a whole number from 0", _is_count),
    float: ("a number", _is_number),
}


def _mismatch_of_object(value: Any, shape: Mapping[str, Shape], name: str) -> str | None:
    if not isinstance(value, dict):
        return f"{name} is not an object" if name else "holds no JSON object"
    shape = dict.fromkeys(value, shape["*"]) if "*" in shape else shape
    for key, inner in shape.items():
        member, optional = key.removesuffix("?"), key.endswith("?")
        full = f"{name}.{member}" if name else member
        if value.get(member) is None:
            if optional:
                continue
            return f"lacks {full}"
        if problem := _mismatch(value[member], inner, full):
            return problem
    return None
