"""`tcl search`: the nearest vectors to texts, images or vectors, re-ranked by the fusion encoder on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tcl.errors import UsageError
from tcl_cli._console import out as console
from tcl_cli._options import (
    INPUT_PANEL,
    MODEL_PANEL,
    OUTPUT_PANEL,
    AllowUnverifiedOption,
    App,
    Backend,
    BackendOption,
    Device,
    DeviceOption,
    JsonOption,
    ModelOption,
    argument,
    option,
)
from tcl_cli._queries import Query, SearchRun, parse_query, read_queries

if TYPE_CHECKING:
    from tcl.encoders.base import Encoder
    from tcl.search.exact import Collection, Hit

EPILOG = """\
[bold]Examples[/]

  tcl search "a small red circle left of a blue square" --index vecs.npy
  tcl search "a dog on the beach" --index vecs.npy --top 5 --rerank 32 --html hits.html
  tcl search photo.jpg --index texts.npy --model exports/demo --json
  tcl search --queries questions.txt --index vecs.npy --out hits.jsonl
  tcl search "a dog" --index vecs.faiss
  tcl search "a dog" --index lancedb:db/photos
"""


app = App()


@app.command(epilog=EPILOG)
def search(
    index: Annotated[
        str,
        option(
            "--index",
            "-i",
            help="Vectors that `tcl embed` wrote, or what `tcl index` made of them: a .faiss file, or "
            "lancedb:DIR/TABLE.",
            panel=INPUT_PANEL,
        ),
    ],
    query: Annotated[
        str | None, argument(metavar="[QUERY]", help="A text, the path of an image, or a .npy with one vector.")
    ] = None,
    queries: Annotated[
        Path | None,
        option(
            "--queries",
            help="Many queries instead of QUERY: a .txt with one per line, a .jsonl with a query (guessed), text or "
            "image in each object, or a .npy of vectors. The result is JSONL.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    model: ModelOption = None,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    allow_unverified: AllowUnverifiedOption = False,
    images: Annotated[
        Path | None,
        option(
            "--images",
            help="Where the embedded images are now, for --rerank and --html. Default: where they were embedded from.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    centre: Annotated[
        bool, option("--centre", help="Subtract the mean of the vectors from vectors and query.", panel=MODEL_PANEL)
    ] = False,
    ann: Annotated[
        bool,
        option(
            "--ann",
            help="Search by the .faiss index beside the vectors, as is the default above 3 million of them.",
            panel=MODEL_PANEL,
        ),
    ] = False,
    exact: Annotated[
        bool, option("--exact", help="Compare every vector, and use no .faiss index.", panel=MODEL_PANEL)
    ] = False,
    top: Annotated[int, option("--top", "-k", min=1, help="Hits to show.", panel=OUTPUT_PANEL)] = 10,
    rerank: Annotated[
        int | None,
        option(
            "--rerank",
            min=1,
            help="Let the fusion encoder order this many of the nearest, from the tokens that `tcl embed "
            "--keep-tokens` kept, else from the images.",
            panel=MODEL_PANEL,
        ),
    ] = None,
    allow_unknown: Annotated[
        bool,
        option(
            "--allow-unknown",
            help="Search for a text of which the model's vocabulary knows no word.",
            panel=INPUT_PANEL,
        ),
    ] = False,
    out: Annotated[
        Path | None, option("--out", "-o", help="Write the JSONL of --queries here.", panel=OUTPUT_PANEL)
    ] = None,
    html: Annotated[
        Path | None, option("--html", help="Also write a page with thumbnails.", panel=OUTPUT_PANEL)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Find the nearest images or texts to a query."""
    from tcl.search.open import open_collection
    from tcl_cli.eval.evaluation import check_output

    _check_options(query, queries, out, html, json)
    if images is not None and rerank is None and html is None:
        raise UsageError("--images is for --rerank and --html", hint="leave it out")
    if ann and exact:
        raise UsageError("--ann and --exact exclude each other", hint="leave one of them out")
    asked = [parse_query(query)] if query is not None else read_queries(queries)  # type: ignore[arg-type]
    collection = open_collection(index, ann if ann or exact else None, centre)
    for name, path, suffix in (("--out", out, ".jsonl"), ("--html", html, ".html")):
        check_output(name, path, [str(file) for file in collection.files], suffix)
    open_model = partial(_open, model, backend, device, allow_unverified)
    run = SearchRun(collection, top, rerank, images, open_model, allow_unknown or queries is not None)
    found = run(asked)
    if queries is None:
        results = list(found)
        _show(results[0], run.seconds, json)
    else:
        results = _write(found, out, keep=html is not None)
        if json:
            console.json({"queries": run.count, "out": str(out), "seconds": run.seconds})
    console.message(run.summary())
    for warning in run.warnings():
        console.warning(warning)
    if html is not None:
        _write_html(html, results, collection, images, run.summary())


def _check_options(query: str | None, queries: Path | None, out: Path | None, html: Path | None, json: bool) -> None:
    from tcl.vectors.files import file_names
    from tcl_cli.eval.evaluation import check_output

    if (query is None) == (queries is None):
        what = "give a QUERY or --queries FILE" + (", and not both" if queries is not None else "")
        raise UsageError(what, hint="tcl search --help")
    if queries is None and out is not None:
        raise UsageError("--out takes the results of --queries", hint="redirect stdout, or use --queries")
    if queries is not None and json and out is None:
        raise UsageError("--queries prints JSONL by itself", hint="leave out --json, or add --out FILE")
    if out is not None and out == html:
        raise UsageError(f"--out and --html are both {out}", hint="choose another name for one of them")
    asked = [] if queries is None else [queries, *(file_names(queries) if queries.suffix == ".npy" else [])]
    sources = [str(file) for file in asked if file.exists()]
    check_output("--out", out, sources)
    check_output("--html", html, sources)


def _open(model: str | None, backend: Backend, device: Device, allow_unverified: bool) -> Encoder:
    from tcl.encoders.open import open_encoder
    from tcl_cli.embed import warn_unverified

    # One query has all cores to itself.
    encoder = open_encoder(model, backend, device, lanes=1, say=console.message, allow_unverified=allow_unverified)
    warn_unverified(encoder)
    return encoder


def _write(results: Iterable[tuple[Query, list[Hit]]], out: Path | None, keep: bool) -> list[tuple[Query, list[Hit]]]:
    """Results as JSONL, to stdout or a file; returned only where they are needed again."""
    from tcl_cli.eval.evaluation import write_lines

    kept = []

    def rows() -> Iterator[dict[str, Any]]:
        for query, hits in results:
            if keep:
                kept.append((query, hits))
            row_id = {} if query.id is None else {"id": query.id}
            yield row_id | {"query": query.name, "hits": _to_json(hits)}

    if out is None:
        for row in rows():
            console.json(row)
    else:
        write_lines(out, rows())
        console.message(str(out))
    return kept


def _show(result: tuple[Query, list[Hit]], seconds: dict[str, float], json: bool) -> None:
    query, hits = result
    if json:
        console.json({"query": query.name, "hits": _to_json(hits), "seconds": seconds})
        return
    optional = {name: [getattr(hit, name) for hit in hits] for name in ("logit", "match", "id", "path", "text")}
    columns = {name: values for name, values in optional.items() if any(value is not None for value in values)}
    rows: list[list[object]] = [[rank, round(hit.score, 4)] for rank, hit in enumerate(hits, 1)]
    for values in columns.values():
        for row, value in zip(rows, values, strict=True):
            row.append("" if value is None else f"{value:.3f}" if isinstance(value, float) else value)
    console.table(["rank", "score", *columns], rows)


def _to_json(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    return [hit.to_json() | {"rank": rank} for rank, hit in enumerate(hits, 1)]


def _write_html(
    path: Path, results: Sequence[tuple[Query, list[Hit]]], collection: Collection, images: Path | None, note: str
) -> None:
    from tcl.search.page import Section, write_page

    sections = [Section(query.name, hits, query.name if query.kind == "image" else None) for query, hits in results]
    root = collection.root if images is None else images
    write_page(path, "tcl search", f"{collection.name}: {note}", sections, collection.kind, root)
    console.message(str(path))
