"""`tcl search`: the nearest vectors to a text or an image, re-ranked by the fusion encoder on demand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tcl_cli._console import out as console
from tcl_cli._options import (
    INPUT_PANEL,
    OUTPUT_PANEL,
    Backend,
    BackendOption,
    Device,
    DeviceOption,
    JsonOption,
    ModelOption,
)
from tcl_cli.embed import warn_unverified

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tcl.embed import Encoder
    from tcl.models.tcl import TCL
    from tcl.search import Hit, VectorIndex

EPILOG = """\
[bold]Examples[/]

  tcl search "a small red circle left of a blue square" --index vecs.npy
  tcl search "a dog on the beach" --index vecs.npy --top 5 --rerank 32
  tcl search photo.jpg --index texts.npy --model exports/demo --json
"""


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A text, or the path of an image.", show_default=False)],
    index: Annotated[
        Path,
        typer.Option(
            "--index", "-i", help="Vectors that `tcl embed` wrote.", rich_help_panel=INPUT_PANEL, show_default=False
        ),
    ],
    model: ModelOption = None,
    backend: BackendOption = Backend.auto,
    device: DeviceOption = Device.auto,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Where the embedded images are now, for re-ranking. Default: where they were embedded from.",
            rich_help_panel=INPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Hits to show.", rich_help_panel=OUTPUT_PANEL)] = 10,
    rerank: Annotated[
        int | None,
        typer.Option(
            "--rerank",
            min=1,
            help="Let the fusion encoder order this many of the nearest; needs torch, and a run rather than a bundle.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find the nearest images or texts to a query."""
    from tcl.errors import UsageError
    from tcl.search import VectorIndex

    vectors = VectorIndex.open(index)
    is_image = _is_image(query)
    if rerank is not None and is_image == (vectors.kind == "image"):
        raise UsageError(
            f"re-ranking compares texts with images; query and vectors are both {vectors.kind}s",
            hint="leave out --rerank",
        )
    if rerank is None:
        encoder, fusion = _open(model, backend, device), None
    else:
        encoder, fusion = _open_with_fusion(model, backend, device)
    warn_unverified(encoder)
    vectors.check_model(encoder.model_hash)
    hits = vectors.search(_encode(encoder, query, is_image), max(top, rerank or 0))[0]
    if fusion is not None and rerank is not None:
        hits = [*_rerank(fusion, vectors, query, is_image, hits[:rerank], images), *hits[rerank:]]
    _show(query, hits[:top], json)


def _is_image(query: str) -> bool:
    from tcl.data.images import IMAGE_SUFFIXES
    from tcl.data.scenes import PREFIX
    from tcl.errors import UsageError

    if query.startswith(PREFIX) or os.path.isfile(query):
        return True
    if Path(query).suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"{query}: no such image", hint="a query is a text, or the path of an image that exists")
    return False


def _open(model: str | None, backend: Backend, device: Device) -> Encoder:
    from export.runtime import open_encoder

    return open_encoder(model, backend.value, device.value)


def _open_with_fusion(model: str | None, backend: Backend, device: Device) -> tuple[Encoder, TCL]:
    """An encoder and the model with the fusion encoder, which only torch has."""
    from export.runtime import TorchEncoder
    from tcl.errors import UsageError

    encoder = _open(model, backend, device)
    if not isinstance(encoder, TorchEncoder):
        raise UsageError(
            "re-ranking needs the fusion encoder, which a bundle does not hold",
            hint="name the run that the bundle was exported from by --model, or leave out --rerank",
        )
    return encoder, encoder.model


def _encode(encoder: Encoder, query: str, is_image: bool) -> NDArray[np.float32]:
    from tcl.data.captions import clean_caption
    from tcl.errors import UsageError

    if is_image:
        return encoder.encode_image(encoder.processor.images([query]))
    if not clean_caption(query):
        raise UsageError(f"the query {query!r} holds no words", hint="describe what to look for, or name an image")
    return encoder.encode_text(*encoder.processor.texts([query]))


def _rerank(
    model: TCL, vectors: VectorIndex, query: str, is_image: bool, hits: Sequence[Hit], images: Path | None
) -> list[Hit]:
    from tcl.data.images import ImageError
    from tcl.errors import DataError
    from tcl.inputs import locate
    from tcl.rerank import match_image, match_text
    from tcl.search import rerank

    root = images or Path(str(vectors.meta.get("root", "")))

    def match(candidates: Sequence[Hit]) -> Any:
        if is_image:
            return match_image(model, query, [hit.text or "" for hit in candidates])
        return match_text(model, query, [locate(hit.path or hit.id, root) for hit in candidates])

    try:
        return rerank(hits, match)
    except ImageError as error:
        hint = "re-ranking opens the images again; say where they are now by --images"
        raise DataError(error.message, hint) from error


def _show(query: str, hits: Sequence[Hit], json: bool) -> None:
    if json:
        console.json({"query": query, "hits": [hit.to_json() | {"rank": rank} for rank, hit in enumerate(hits, 1)]})
        return
    columns = ["rank", "score"]
    matched, texts = any(hit.match is not None for hit in hits), any(hit.text for hit in hits)
    columns += ["match"] * matched + ["id"] + ["text"] * texts
    rows = []
    for rank, hit in enumerate(hits, 1):
        match = ["" if hit.match is None else f"{hit.match:.3f}"] if matched else []
        rows.append([rank, round(hit.score, 4), *match, hit.id, *([hit.text or ""] if texts else [])])
    console.table(columns, rows)
