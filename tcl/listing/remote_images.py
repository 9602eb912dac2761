"""Images behind a URL that the remote can list. Imports no torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tcl.data.inputs.ids import gather
from tcl.data.inputs.inputs import Inputs
from tcl.data.natural_order import natural_key
from tcl.data.sources.columns import InputRow
from tcl.data.sources.folders import Progress, is_image
from tcl.files.remote import find, url_path


def remote_images(pattern: str, progress: Progress) -> Inputs:
    """Images behind URLs that match a glob; their ids are relative to the folder before its first wildcard."""
    found = {url: current for url, current in find(pattern) if is_image(url_path(url))}
    urls = sorted(found, key=natural_key)
    root = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0].partition("://")[2].strip("/")
    rows = []
    for url in urls:
        name = url.partition("://")[2].strip("/")
        rows.append(InputRow(name.removeprefix(f"{root}/") if root else name, url, ""))
    ids, values = gather(rows, progress)
    origin = "\n".join(f"{url} {found[url]}" for url in urls)
    return Inputs("image", ids, values, Path(), origin=hashlib.sha256(origin.encode()).hexdigest())
