"""Captions in a JSON object: those of COCO, and Karpathy's splits of COCO and Flickr30k.

| file | holds |
|---|---|
| COCO | `images` with `id` and `file_name`; `annotations` with `image_id` and `caption`: a row for each of these |
| Karpathy | `images` with `filename`, `filepath`?, `split`, and `sentences` with `raw`: a row for each image |

Both are streamed. Of COCO only the names of the images are kept in memory, in a first pass over the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tcl.data.tables.json_stream import json_object
from tcl.errors import DataError


def object_rows(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Rows with `image`, `caption`, `image_id`, and the other columns of the file; each with its place.

    Raises:
        DataError: the file is malformed, or neither of the two.
    """
    names: dict[Any, Any] = {}
    number, annotated = 0, False
    with path.open("rb") as file:
        for key, item in json_object(file, name):
            if key == "images":
                number += 1
                if isinstance(item, dict) and "sentences" in item:
                    yield f"image {number}", _karpathy(item)
                elif isinstance(item, dict) and isinstance(item.get("id"), int | str):
                    names[item["id"]] = item.get("file_name")
            annotated = annotated or key == "annotations"
    if annotated:
        yield from _coco(path, name, names)
    elif not number or names:
        raise DataError(
            f"{name}: expected a list of rows, found dict without captions",
            hint='write [{"image": ..., "caption": ...}, ...], or name a file of COCO or of Karpathy\'s splits',
        )


def _coco(path: Path, name: str, names: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    number = 0
    with path.open("rb") as file:
        for key, item in json_object(file, name):
            if key == "annotations":
                number += 1
                known = isinstance(item, dict) and isinstance(item.get("image_id"), int | str)
                yield f"annotation {number}", item | {"image": names.get(item["image_id"])} if known else item


def _karpathy(item: dict[str, Any]) -> dict[str, Any]:
    sentences, folder, file_name = item["sentences"], item.get("filepath"), item.get("filename")
    row = {column: value for column, value in item.items() if column not in ("sentences", "filepath", "filename")}
    if isinstance(file_name, str):
        row["image"] = f"{folder}/{file_name}" if isinstance(folder, str) and folder else file_name
    if isinstance(sentences, list):
        row["caption"] = [sentence.get("raw") for sentence in sentences if isinstance(sentence, dict)]
    row.setdefault("image_id", item.get("cocoid", item.get("imgid")))
    return row
