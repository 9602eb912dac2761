"""Hits or duplicates as one HTML file with everything in it, thumbnails included."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tcl.data.images.decode import ImageError
from tcl.data.images.thumbnail import thumbnail
from tcl.data.inputs.listing import locate
from tcl.errors import UsageError, without_secrets
from tcl.files.atomic import atomic_file
from tcl.files.names import on_one_line
from tcl.files.pages import page
from tcl.search.exact import Hit

SHOWN = 50  # hits of a section; each is an image to decode, and some kilobytes of page


@dataclass(frozen=True)
class Section:
    """A heading, and what was found for it.

    Attributes:
        heading: for example the query.
        hits: best first, of which the page shows at most `SHOWN`.
        image: the query, where it is an image that can be opened.
    """

    heading: str
    hits: list[Hit]
    image: str | None = None


def write_page(path: Path, title: str, note: str, sections: Iterable[Section], kind: str, root: Path) -> None:
    """Write the page under a temporary name, section by section, then rename it.

    Args:
        path: where to; a file that is there is replaced.
        title: of the page.
        note: a line below it.
        sections: what was found.
        kind: of the hits, `image` or `text`.
        root: folder that relative image paths start from.

    Raises:
        UsageError: `path` cannot be written.
    """
    try:
        # What is no Unicode, as in names of files, is spelt as in `tcl.files.names`.
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            content = page(
                Path(__file__).with_suffix(".html"),
                title=title,
                note=note,
                sections=sections,
                kind=kind,
                shown=SHOWN,
                locate=lambda hit: locate(hit.path or hit.id, root),
                name=lambda hit: on_one_line(without_secrets(hit.path or hit.id)),
                picture_of=_picture,
            )
            file.writelines(content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}", hint="choose another --html") from error


class _Picture(NamedTuple):
    """A thumbnail, or why there is none."""

    data: bytes = b""
    reason: str = ""


def _picture(location: str) -> _Picture:
    try:
        return _Picture(data=thumbnail(location))
    except ImageError as error:
        return _Picture(reason=error.reason)
