"""Hits or duplicates as one HTML file with everything in it, thumbnails included."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

from tcl.data.images.decode import ImageError, decode_crops
from tcl.data.inputs.listing import locate
from tcl.errors import UsageError
from tcl.files.atomic import atomic_file
from tcl.files.names import on_one_line
from tcl.search.exact import Hit

THUMBNAIL = 320  # pixels of the longer side; shown at half of that
SHOWN = 50  # hits of a section; each is an image to decode, and some kilobytes of page
LONGEST = 500  # characters of a text or a path
# Whatever a text or a file name holds, the page runs no script and loads nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:78rem;padding:0 1rem;color:#1c1c1c}
h2{font-size:1.05rem;margin:2rem 0 .6rem;overflow-wrap:anywhere}p{color:#666;margin:.2rem 0}
ol{display:flex;flex-wrap:wrap;gap:1rem;list-style:none;padding:0;margin:0}
li{width:11rem;font-size:.85rem}img{max-width:10rem;max-height:10rem;display:block;margin-bottom:.3rem}
.text{font-size:1rem}.name{color:#666;overflow-wrap:anywhere}b{font-variant-numeric:tabular-nums}
@media(prefers-color-scheme:dark){body{background:#151515;color:#e8e8e8}p,.name{color:#999}}
"""


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
            file.writelines(_page(title, note, sections, kind, root))
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}", hint="choose another --html") from error


def _page(title: str, note: str, sections: Iterable[Section], kind: str, root: Path) -> Iterator[str]:
    yield (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{escape(note)}</p>"
    )
    for section in sections:
        yield f"<h2>{escape(section.heading[:LONGEST])}</h2>"
        if section.image:
            yield _thumbnail(section.image)
        yield "<ol>"
        for hit in section.hits[:SHOWN]:
            yield f"<li>{_hit(hit, kind, root)}</li>\n"
        yield "</ol>"
        if len(section.hits) > SHOWN:
            yield f"<p>and {len(section.hits) - SHOWN} more</p>"
    yield "</body></html>\n"


def _hit(hit: Hit, kind: str, root: Path) -> str:
    figures = f"<b>{hit.score:.4f}</b>"
    if hit.match is not None:
        figures += f" match <b>{hit.match:.3f}</b>"
    if kind == "text":
        return (
            f'<div class="text">{escape((hit.text or "")[:LONGEST])}</div>{figures}<div class="name">{_name(hit)}</div>'
        )
    return f'{_thumbnail(locate(hit.path or hit.id, root))}{figures}<div class="name">{_name(hit)}</div>'


def _name(hit: Hit) -> str:
    return escape(on_one_line(hit.path or hit.id)[:LONGEST])


def _thumbnail(location: str) -> str:
    try:
        image, _ = decode_crops(location, lambda width, height: [(0, 0, width, height)], (THUMBNAIL, THUMBNAIL))
    except ImageError as error:
        return f"<p>{escape(error.reason[:LONGEST])}</p>"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = BytesIO()
    image.save(file, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode("ascii")}">'
