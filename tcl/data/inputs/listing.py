"""What `tcl embed` is pointed at, as a list of images or texts with ids.

| source | rows | id |
|---|---|---|
| folder | its images, sub-folders included, natural order | path relative to the folder |
| a folder of shards or of Parquet files | as these | as these |
| glob, braces, image file | the images | path relative to the folder that the pattern starts in |
| `.txt`, `.lst`, `-` for standard input | one sentence, or one image path or URL, per line | line number; the line |
| `.json`, `.jsonl`, `.csv`, `.tsv`, `.parquet` | an image or text column | the column `id`, else path or row number |
| `.tar` | its images; with kind `text` its `.txt` and `.json` | name of the member; of the sample |
| `scenes:` | rendered scenes or their captions | the scene's reference |

Tables and shards may be several, by a glob or braces, and have a condition `#COLUMN=VALUE`; `tcl.data.sources.records`
reads them, as it does for training. With kind `text` a folder gives the texts beside its images. All but a folder may
be a URL of any fsspec scheme, and so may a folder where the remote can list it. A row with several texts gives several
inputs: `3#1`, `3#2`.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, NamedTuple

from tcl.data.images.decode import IMAGE_SUFFIXES
from tcl.data.inputs.inputs import Inputs, Kind, locate
from tcl.data.inputs.tables import inputs_of, warnings_of
from tcl.data.inputs.unique_ids import InputRow, gather, numbered
from tcl.data.scenes import scenes
from tcl.data.sources.columns import IMAGE_COLUMNS, TEXT_COLUMNS, Columns
from tcl.data.sources.find import find_source, names_tables, not_a_scene, without_braces
from tcl.data.sources.folders import Progress, check_name, files_in, images_matching, images_of, is_image
from tcl.data.sources.record import Skipped, resolve, unreadable
from tcl.data.sources.records import has_texts
from tcl.data.storage.open import check_regular
from tcl.data.storage.tar import unpack_command
from tcl.data.strings import Strings
from tcl.data.tables.formats import READERS, check_line_ends, numbered_lines
from tcl.errors import DataError, UsageError, without_secrets
from tcl.files.named import allow
from tcl.files.names import natural_key, to_unicode
from tcl.files.remote import fetch, find, is_url, stamp, url_path

__all__ = ["Inputs", "Kind", "list_inputs", "locate"]

LISTS = (".txt", ".lst")
PEEK_LINES = 5  # of a list, to tell paths from sentences


def list_inputs(
    source: str,
    kind: Literal["auto", "image", "text"] = "auto",
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    images: str | None = None,
    stdin: BinaryIO | None = None,
    progress: Progress = lambda rows: None,
    exclude: Sequence[str] = (),
) -> Inputs:
    """List what a source holds. Images are not opened.

    Args:
        source: see the module's table.
        kind: `auto` takes images where there are any, else texts.
        image_column: of a table, instead of those with a usual name.
        text_column: likewise.
        id_column: likewise.
        images: folder or URL that relative image paths in a table or list start from, instead of its own folder.
        stdin: what `-` reads; by default this process's standard input.
        progress: called with the number of rows read since the last call.
        exclude: patterns of files and sub-folders that are left out of a folder of images.

    Raises:
        UsageError: nothing is there, or it cannot hold what is asked for.
        DataError: it is malformed, cannot be read, holds nothing, or gives two inputs the same id.
    """
    if "\0" in source:
        raise UsageError(f"{source!r}: no file has a name with a NUL in it")
    if images is not None and not is_url(images) and not Path(images).is_dir():
        raise UsageError(f"{images}: no such folder", hint="say by --images where the images are")
    columns = Columns(image_column, text_column, id_column)
    for url in filter(is_url, (source, images or "")):
        allow(url)  # and what is beside it, which the source then names
    asked = _Asked(not_a_scene(source.removeprefix("file://")), kind, columns, images, progress, exclude)
    if exclude and not os.path.isdir(asked.source):
        raise UsageError(f"{source}: is no folder", hint="leave out --exclude")
    try:
        inputs = _list(asked, stdin)
    except OSError as error:
        raise unreadable(source, error) from error
    if not len(inputs):
        what = {"auto": "image or text", "image": "image", "text": "text"}[kind]
        unread = f"; {inputs.warnings[0]}" if inputs.warnings else ""
        raise DataError(f"{source}: holds no {what}{unread}", hint=_what_was_looked_for(Path(source), kind))
    return inputs


class _Asked(NamedTuple):
    """What `list_inputs` was asked."""

    source: str
    kind: Literal["auto", "image", "text"]
    columns: Columns
    images: str | None
    progress: Progress
    exclude: Sequence[str]


def _list(asked: _Asked, stdin: BinaryIO | None) -> Inputs:
    source, path = asked.source, Path(asked.source)
    if source.startswith(scenes.PREFIX):
        return _scenes(_names_no_images(_without_columns(asked)))
    if source == "-":
        return _stdin(_without_columns(asked), stdin or sys.stdin.buffer)
    if is_url(source):
        return _remote(asked)
    check_name(os.path.abspath(source))
    check_regular(source)
    if path.is_dir():
        return _folder(asked)
    suffix = path.suffix.lower()
    if path.is_file() and suffix in IMAGE_SUFFIXES:
        _without_columns(_only_images(asked))
        names = Strings.of([path.name])
        return Inputs("image", names, _as_paths(names, path.parent), path.parent)
    if path.exists() and suffix in LISTS:
        return _lines(_without_columns(asked), path, path.parent, "")
    if names_tables(source):
        return inputs_of(find_source(source), asked.kind, asked.columns, asked.images, asked.progress)
    if path.exists():
        if command := unpack_command(source):
            raise UsageError(f"{source} is compressed: inputs are read from any place of a file", hint=command)
        raise UsageError(
            f"{source}: unknown kind of source {suffix or path.name!r}",
            hint="give a folder, a glob, an image, .txt, .lst, .tar, .json, .jsonl, .csv, .tsv, .parquet, or scenes:",
        )
    patterns = without_braces(source)
    if glob.has_magic(source) or len(patterns) > 1:
        _without_columns(_only_images(asked))
        skipped: list[Skipped] = []
        names, root = images_matching(patterns, skipped, asked.progress)
        return Inputs("image", names, names, root, warnings_of(skipped))
    raise UsageError(
        f"{source}: no such file or folder", hint="check the path; quote a glob so that the shell keeps it"
    )


def _only_images(asked: _Asked) -> _Asked:
    if asked.kind == "text":
        raise UsageError(f"{asked.source}: holds images, not texts", hint="leave out --kind, or give a file of texts")
    return _names_no_images(asked)


def _names_no_images(asked: _Asked) -> _Asked:
    if asked.images is not None:
        raise UsageError(f"{asked.source}: is no table and no list", hint="leave out --images")
    return asked


def _without_columns(asked: _Asked) -> _Asked:
    if asked.columns != Columns():
        raise UsageError(f"{asked.source}: has no columns to choose from", hint="leave out the --...-column options")
    return asked


def _what_was_looked_for(path: Path, kind: str) -> str:
    if path.suffix.lower() == ".tar" and kind == "text":
        return "texts of a shard are its .txt members, and captions in its .json members"
    if str(path) == "-" or path.suffix.lower() in LISTS:
        return "every line is an input, and there is none"
    if path.suffix.lower() in READERS:
        return f"columns looked for: {', '.join(IMAGE_COLUMNS)} or {', '.join(TEXT_COLUMNS)}"
    return f"looked for files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"


def _folder(asked: _Asked) -> Inputs:
    folder, skipped = Path(asked.source), list[Skipped]()
    if asked.kind != "text":
        an_image = images_of(folder)
        foreign, example = 0, ""

        def wanted(name: str) -> bool:
            nonlocal foreign, example
            if an_image(name):
                return True
            if PurePosixPath(name).suffix.lower() not in (".txt", *READERS):  # captions and tables are about images
                foreign += 1
                example = min(example or name, name)
            return False

        names = files_in(folder, wanted, skipped, asked.progress, asked.exclude)
        if len(names):
            _without_columns(_only_images(asked))
            if foreign:
                what = "1 file is not an image" if foreign == 1 else f"{foreign} files are not images"
                reason = f"{what} by name or content, for example {to_unicode(example)}; left out"
                skipped.append(Skipped(asked.source, reason))
            return Inputs("image", names, _as_paths(names, folder), folder, warnings_of(skipped))
    if asked.exclude:
        raise UsageError(f"{asked.source}: is no folder of images", hint="leave out --exclude")
    found = find_source(asked.source)
    if any(file.suffix for file in found.files):  # shards, or tables
        return inputs_of(found, asked.kind, asked.columns, asked.images, asked.progress)
    if asked.kind == "text" and has_texts(folder):
        return inputs_of(found, asked.kind, asked.columns, asked.images, asked.progress)
    _without_columns(_only_images(asked))
    return Inputs("image", names, names, folder, warnings_of(skipped))


def _as_paths(names: Strings, folder: Path) -> Strings:
    """Names as paths of images: one that begins as a reference to a scene does is written so that it is none."""
    if not any(name.startswith(scenes.PREFIX) for name in names):
        return names
    return Strings.of(str(folder.absolute() / name) if name.startswith(scenes.PREFIX) else name for name in names)


def _scenes(asked: _Asked) -> Inputs:
    rows = scenes.scene_rows(asked.source)
    if asked.kind != "text":
        ids, values = gather((InputRow(name, name) for name, _ in rows), asked.progress)
        return Inputs("image", ids, values, Path())
    texts = (InputRow(f"{name}#{number}", text) for name, texts in rows for number, text in enumerate(texts, 1))
    return Inputs("text", *gather(texts, asked.progress), Path())


def _stdin(asked: _Asked, stdin: BinaryIO) -> Inputs:
    with tempfile.NamedTemporaryFile(suffix=".txt") as copy:  # it is read twice, the first lines for their kind
        shutil.copyfileobj(stdin, copy)
        copy.flush()
        return _lines(asked, Path(copy.name), Path(), "")


def _lines(asked: _Asked, path: Path, root: Path, base: str) -> Inputs:
    """A list of images or of sentences; `base` is the URL that relative paths start from."""
    name = "standard input" if asked.source == "-" else asked.source
    check_line_ends(next(numbered_lines(path, name), (1, ""))[1], name)
    kind = asked.kind if asked.kind != "auto" else _kind_of_lines(path, name)
    lines = ((number, line) for number, text in numbered_lines(path, name) if (line := text.strip()))
    if kind == "text":
        return Inputs("text", *gather((InputRow(str(number), line) for number, line in lines), asked.progress), root)
    start = asked.images and (asked.images if is_url(asked.images) else os.path.abspath(asked.images))
    rows = (InputRow(without_secrets(line), resolve(line, start or base)) for _, line in lines)
    ids, values = gather(rows, asked.progress)
    return Inputs("image", numbered(ids), values, root)


def _kind_of_lines(path: Path, name: str) -> Kind:
    if name.lower().endswith(".lst"):
        return "image"
    lines = (line.strip() for _, line in numbered_lines(path, name))
    first = list(islice(filter(None, lines), PEEK_LINES))
    return "image" if first and all(is_image(url_path(line)) for line in first) else "text"


def _remote(asked: _Asked) -> Inputs:
    url = asked.source
    suffix = PurePosixPath(url_path(url)).suffix.lower()
    web = url.startswith(("http://", "https://"))
    wildcard = any(mark in url for mark in ("*[" if web else "*?["))
    try:
        if suffix in LISTS and not wildcard:
            current = stamp(url)
            base = url_path(url).rpartition("/")[0]
            listed = _lines(_without_columns(asked), fetch(url, current), Path(), base)
            return replace(listed, origin=f"{url} {current}")
        if names_tables(url):
            return inputs_of(find_source(url), asked.kind, asked.columns, asked.images, asked.progress)
        _without_columns(_only_images(asked))
        patterns = without_braces(url)
        if len(patterns) == 1 and not wildcard and (web or suffix in IMAGE_SUFFIXES):
            ids = Strings.of([PurePosixPath(url_path(url)).name or without_secrets(url)])
            return Inputs("image", ids, Strings.of([url]), Path())
        if wildcard or len(patterns) > 1:
            return _remote_images(patterns, asked.progress)
        return _remote_images([f"{url.rstrip('/')}/**"], asked.progress)
    except FileNotFoundError as error:
        raise UsageError(f"no such file or folder: {url}", hint="check the URL") from error


def _remote_images(patterns: Sequence[str], progress: Progress) -> Inputs:
    """Images behind URLs that match a glob; their ids are relative to the folder before its first wildcard."""
    found = {url: current for pattern in patterns for url, current in find(pattern) if is_image(url_path(url))}
    urls = sorted(found, key=natural_key)
    fixed = [
        re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0] for pattern in map(without_secrets, patterns)
    ]
    root = os.path.commonpath(fixed).partition(":/")[2].strip("/")
    rows = []
    for url in urls:
        name = without_secrets(url).partition("://")[2].strip("/")
        rows.append(InputRow(name.removeprefix(f"{root}/") if root else name, url))
    ids, values = gather(rows, progress)
    origin = "\n".join(f"{url} {found[url]}" for url in urls)
    return Inputs("image", ids, values, Path(), origin=hashlib.sha256(origin.encode()).hexdigest())
