"""The items of a JSON list, or of the lists in a JSON object, one by one, whatever the size of the file."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from tcl.errors import DataError

MAX_ROW_BYTES = 1 << 26
"""A row of 64 MB and more is an error: a missing line end or quote, rather than data."""

_READ_BYTES = 1 << 20
_SPACE = " \t\n\r"
_DECODER = json.JSONDecoder()


def json_list(file: BinaryIO, name: str) -> Iterator[Any]:
    """Items of the list in a file, UTF-8 with or without byte order mark.

    Raises:
        DataError: it is not JSON, not UTF-8, or not a list; with the line.
    """
    text = Text(file, name)
    if text.peek() != "[":
        raise _not_a_list(text)
    yield from (text.value() for _ in _items(text, "[", "]"))
    if text.peek():
        raise text.malformed("Extra data")


def parse(text: str) -> Any:
    """`json.loads`, whose every complaint about the text is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class Text:
    """A window on the text of a file, with the position that is read next."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.text = ""
        self.position = 0
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._line = 1  # of the window's begin
        self._ended = False

    def peek(self) -> str:
        """The next character that is no space, which becomes the position; empty at the end of the file."""
        while True:
            text, end = self.text, len(self.text)
            while self.position < end and text[self.position] in _SPACE:
                self.position += 1
            if self.position < end:
                return text[self.position]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The JSON value at the position, which moves behind it."""
        while True:
            failure = None
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
                if end < len(self.text) or self._ended:  # a number at the end of the window may go on behind it
                    self.position = end
                    return value
            except json.JSONDecodeError as error:
                failure = error
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                raise self.malformed(reason) from error
            too_long = len(self.text) - self.position > MAX_ROW_BYTES
            if too_long or not self._more():
                # Of a row that is merely long, the window's end is in the way: inside a text, or right where it fails.
                known = failure and failure.pos < len(self.text) - _READ_BYTES and "Unterminated" not in failure.msg
                if failure and (known or self._ended):
                    self.position = failure.pos
                    raise self.malformed(failure.msg) from failure
                if too_long:
                    raise self.malformed(f"a row of more than {MAX_ROW_BYTES >> 20} MB")

    def malformed(self, message: str) -> DataError:
        line = self._line + self.text.count("\n", 0, self.position)
        hint = "one object per line? then name the file .jsonl" if message == "Extra data" else "repair that line"
        return DataError(f"{self.name} line {line}: malformed JSON: {message}", hint=hint)

    def _more(self) -> bool:
        """Read on, and forget what is before the position."""
        if self._ended:
            return False
        data = self._file.read(max(_READ_BYTES, len(self.text) - self.position))
        self._ended = not data
        try:
            more = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._line + self.text.count("\n") + error.object.count(b"\n", 0, error.start)
            raise not_utf8(self.name, line) from error
        self._line += self.text.count("\n", 0, self.position)
        self.text, self.position = self.text[self.position :] + more, 0
        return True


def not_utf8(name: str, line: int) -> DataError:
    """The error of a line in another encoding."""
    return DataError(f"{name} line {line}: not UTF-8 text", hint="save the file in UTF-8")


def _not_a_list(text: Text) -> DataError:
    value = text.value()
    if text.peek():
        return text.malformed("Extra data")
    return DataError(
        f"{text.name}: expected a list of rows, found {type(value).__name__}",
        hint='write [{"image": ..., "caption": ...}, ...]',
    )


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
