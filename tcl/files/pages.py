"""HTML pages that are one file with everything in it: Jinja2 templates, which escape whatever is put into them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def page(template: Path, **values: object) -> Iterator[str]:
    """The text of a page, piece by piece.

    Args:
        template: extends `frame.html`, which has the content-security policy of every page; files beside it can be
            included. Filters beside Jinja2's own: `cut(n)`, a text of at most so many characters, and `data_url`, a
            JPEG or PNG file as the source of an image.
        values: what it is filled with. Iterators are read as the page is.
    """
    import jinja2

    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent])
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"cut": _cut, "data_url": _data_url}
    return environment.get_template(template.name).generate(values)


def _cut(value: Any, length: int) -> str:
    """Foreign text, cut where nobody reads on."""
    text = str(value)
    return text if len(text) <= length else text[:length] + " ..."


def _data_url(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
