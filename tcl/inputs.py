"""What `tcl embed` is pointed at, as a list of images or texts with ids. Imports no torch.

| source | rows | id |
|---|---|---|
| folder | its images, sub-folders included, natural order | path relative to the folder |
| glob, image file | the images | path relative to the folder the pattern starts in |
| `.txt`, `.lst` | one sentence, or one image path, per line | line number; the path as written |
| `.json`, `.jsonl`, `.csv`, `.tsv` | an image or text column | the column `id`, else the path or the row number |
| `scenes:` | rendered scenes or their captions | the scene's reference |

A row with several texts gives several inputs: `3#1`, `3#2`.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tcl.data import scenes
from tcl.data.formats import CAPTION_KEYS, IMAGE_KEYS, READERS, images_below, numbered_lines
from tcl.data.images import IMAGE_SUFFIXES, natural_key
from tcl.errors import DataError, UsageError

Kind = Literal["image", "text"]
TEXT_KEYS = (*CAPTION_KEYS, "sentence", "query")
PEEK_LINES = 5  # of a .txt, to tell paths from sentences


@dataclass(frozen=True)
class Inputs:
    """Images or texts, in the order of the source.

    Attributes:
        kind: which of the two.
        ids: one per input; how the source's owner knows it.
        values: texts, or image paths below `root` (absolute ones and `scenes:` references stay as they are).
        root: folder that relative image paths start from.
    """

    kind: Kind
    ids: list[str]
    values: list[str]
    root: Path

    def __len__(self) -> int:
        return len(self.ids)

    def location(self, row: int) -> str:
        """What to open for image `row`: a path or a `scenes:` reference."""
        return locate(self.values[row], self.root)


def locate(image: str, root: Path) -> str:
    """A path or `scenes:` reference as it can be opened."""
    return image if image.startswith(scenes.PREFIX) else str(root / image)


def list_inputs(source: str, kind: Literal["auto", "image", "text"] = "auto") -> Inputs:
    """List what a source holds.

    Args:
        source: see the module's table.
        kind: `auto` takes images where there are any, else texts.

    Raises:
        UsageError: nothing is there, or it cannot hold what `kind` asks for.
        DataError: it is malformed or holds nothing.
    """
    inputs = _list(source, kind)
    if not inputs.ids:
        what = {"auto": "image or text", "image": "image", "text": "text"}[kind]
        raise DataError(f"{source}: holds no {what}", hint=_what_was_looked_for(Path(source)))
    return inputs


def _list(source: str, kind: Literal["auto", "image", "text"]) -> Inputs:
    path = Path(source)
    if source.startswith(scenes.PREFIX):
        return _scenes(source, kind)
    if path.is_dir():
        _no_text(source, kind)
        names = images_below(path)
        return Inputs("image", names, names, path)
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            _no_text(source, kind)
            return Inputs("image", [path.name], [path.name], path.parent)
        if suffix in (".txt", ".lst"):
            return _lines(path, kind)
        if suffix in READERS:
            return _table(path, kind)
        raise UsageError(
            f"{source}: unknown kind of source {suffix or path.name!r}",
            hint="give a folder, a glob, an image, .txt, .lst, .json, .jsonl, .csv, .tsv, or scenes:",
        )
    if glob.has_magic(source):
        _no_text(source, kind)
        return _glob(source)
    raise UsageError(
        f"{source}: no such file or folder", hint="check the path; quote a glob so that the shell keeps it"
    )


def _no_text(source: str, kind: str) -> None:
    if kind == "text":
        raise UsageError(f"{source}: holds images, not texts", hint="leave out --kind, or give a file of texts")


def _what_was_looked_for(path: Path) -> str:
    if path.is_file():
        return f"columns looked for: {', '.join(IMAGE_KEYS)} or {', '.join(TEXT_KEYS)}"
    return f"looked for files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"


def _scenes(source: str, kind: str) -> Inputs:
    if kind != "text":
        references = [reference for reference, _ in scenes.scene_rows(source)]
        return Inputs("image", references, references, Path())
    rows = [
        (f"{reference}#{n}", text) for reference, texts in scenes.scene_rows(source) for n, text in enumerate(texts, 1)
    ]
    return Inputs("text", [row_id for row_id, _ in rows], [text for _, text in rows], Path())


def _glob(pattern: str) -> Inputs:
    fixed: list[str] = []  # the folders before the first wildcard
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = Path(*fixed)
    found = glob.glob(str(Path(pattern).relative_to(root)), root_dir=root, recursive=True)
    names = [Path(name).as_posix() for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    names = sorted((name for name in names if (root / name).is_file()), key=natural_key)
    return Inputs("image", names, names, root)


def _lines(path: Path, kind: str) -> Inputs:
    lines = ((number, line.strip()) for number, line in numbered_lines(path))
    rows = [(number, line) for number, line in lines if line]
    if kind == "auto":
        paths = all(Path(line).suffix.lower() in IMAGE_SUFFIXES for _, line in islice(rows, PEEK_LINES))
        kind = "image" if paths and rows else "text"
    values = [line for _, line in rows]
    if kind == "image":
        return Inputs("image", values, values, path.parent)
    return Inputs("text", [str(number) for number, _ in rows], values, path.parent)


def _table(path: Path, kind: str) -> Inputs:
    """Rows with an image or text column; the first row decides which where `kind` is auto."""
    ids: list[str] = []
    values: list[str] = []
    for number, (place, row) in enumerate(READERS[path.suffix.lower()](path), 1):
        if not isinstance(row, dict):
            raise DataError(f"{path} {place}: expected an object, found {type(row).__name__}")
        if kind == "auto":
            kind = "image" if _column(row, IMAGE_KEYS) else "text"
        key = _column(row, IMAGE_KEYS if kind == "image" else TEXT_KEYS)
        if key is None:
            raise UsageError(
                f"{path} {place}: no {kind} column among {', '.join(map(str, row)) or 'none'}",
                hint=f"name it {', '.join(IMAGE_KEYS if kind == 'image' else TEXT_KEYS)}, or change --kind",
            )
        value = row[key]
        row_id = row.get("id")
        if row_id in (None, ""):
            row_id = value if kind == "image" else number
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, list):
            ids += [f"{row_id}#{n}" for n in range(1, len(value) + 1)]
            values += [str(item) for item in value]
        else:
            ids.append(str(row_id))
            values.append("" if value is None else str(value))
    return Inputs("image" if kind == "image" else "text", ids, values, path.parent)


def _column(row: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if key in row), None)
