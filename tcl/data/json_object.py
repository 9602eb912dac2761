"""The lists inside a JSON object item by item, whatever the size of the file. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from tcl.data.tables.json_stream import Text


def json_object(file: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """Members of the object in a file with their keys; of a member that is a list, each item with its key.

    Raises:
        DataError: it is not JSON, not UTF-8, or not an object; with the line.
    """
    text = Text(file, name)
    for _ in _items(text, "{", "}"):
        key = text.value()
        if text.peek() != ":":
            raise text.malformed("Expecting ':' delimiter")
        text.position += 1
        if text.peek() == "[":
            yield from ((str(key), text.value()) for _ in _items(text, "[", "]"))
        else:
            yield str(key), text.value()
    if text.peek():
        raise text.malformed("Extra data")


def _items(text: Text, opening: str, closing: str) -> Iterator[None]:
    """Stand before each item in turn; whoever iterates reads it."""
    if text.peek() != opening:
        raise text.malformed(f"Expecting '{opening}'")
    text.position += 1
    if text.peek() == closing:
        text.position += 1
        return
    mark = ","
    while mark == ",":
        text.peek()
        yield
        mark = text.peek()
        if mark not in (closing, ","):
            raise text.malformed("Expecting ',' delimiter")
        text.position += 1
