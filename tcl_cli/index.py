"""`tcl index`: vectors into a FAISS index, or into a vector database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tcl.errors import UsageError
from tcl_cli._console import counted
from tcl_cli._console import out as console
from tcl_cli._options import OUTPUT_PANEL, App, JsonOption, argument, option

EPILOG = """\
[bold]Examples[/]

  tcl index vecs.npy                             vecs.faiss, of the kind that suits the number of rows
  tcl index vecs.npy --kind hnsw --out fast.faiss
  tcl index vecs.npy --to lancedb:db/photos      rows whose id is there already are replaced

Below a few million vectors `tcl search --index vecs.npy` needs no index.
"""


Kind = Literal["auto", "flat", "hnsw", "ivfpq"]


app = App()


@app.command(epilog=EPILOG)
def index(
    vectors: Annotated[Path, argument(metavar="VECTORS", help="What `tcl embed` wrote: a file, or a folder of parts.")],
    out: Annotated[
        Path | None,
        option(
            "--out",
            "-o",
            help="Where to, ending in .faiss. Default: beside the vectors, where `tcl search` finds it.",
            panel=OUTPUT_PANEL,
        ),
    ] = None,
    kind: Annotated[
        Kind,
        option(
            "--kind",
            help="flat: every row compared. hnsw: a graph; fast, needs the memory of float32 vectors. ivfpq: cells of "
            "compressed vectors. auto: flat up to 20,000 rows, hnsw up to 2 million, ivfpq above.",
            panel=OUTPUT_PANEL,
        ),
    ] = "auto",
    to: Annotated[
        str | None,
        option(
            "--to",
            metavar="lancedb:DIR/TABLE",
            help="Write ids, vectors, texts or paths, and the model's hash to a LanceDB table instead.",
            panel=OUTPUT_PANEL,
        ),
    ] = None,
    restart: Annotated[bool, option("--restart", help="Replace the index that is there.", panel=OUTPUT_PANEL)] = False,
    json: JsonOption = False,
) -> None:
    """Build an index of vectors, with its measured recall, or write them to a database."""
    if to is not None:
        if out is not None or kind != "auto" or restart:
            raise UsageError("--to takes none of --out, --kind and --restart", hint="leave them out")
        _to_table(vectors, to, json)
    else:
        _to_file(vectors, out, kind, restart, json)


def _to_file(source: Path, out: Path | None, kind: Kind, restart: bool, json: bool) -> None:
    from dataclasses import asdict

    from tcl.search.faiss import SUFFIX, default_index
    from tcl.search.faiss_build import build_index, choose_kind
    from tcl.vectors.reader import VectorFile
    from tcl_cli.eval.evaluation import check_output

    vectors = VectorFile.open(source)
    target = default_index(vectors.path) if out is None else out
    if target.suffix != SUFFIX:
        raise UsageError(f"{target}: an index is written as {SUFFIX}", hint=f"for example --out {target.stem}{SUFFIX}")
    check_output("--out", target, [])
    if target.exists() and not restart:
        raise UsageError(f"{target}: exists", hint="choose another --out, or add --restart to replace it")
    chosen = choose_kind(len(vectors)) if kind == "auto" else kind
    console.message(f"{chosen} index of {counted(len(vectors), 'vectors')} of {vectors.dim} entries")
    with console.progress("Indexing", len(vectors)) as advance:
        report = build_index(vectors, target, kind, advance)
    console.message(
        f"recall@10 against exact search: {report.recall_at_10:.3f}, of {counted(report.queries, 'rows')} as queries"
    )
    if json:
        console.json({"out": str(target)} | asdict(report))
    else:
        console.data(str(target))


def _to_table(source: Path, place: str, json: bool) -> None:
    from tcl.search.lancedb import write_table
    from tcl.vectors.reader import VectorFile

    vectors = VectorFile.open(source)
    with console.progress("Writing", len(vectors)) as advance:
        written, total = write_table(vectors, place, advance)
    console.message(f"{counted(written, 'rows')} written, {total} in the table")
    if json:
        console.json({"out": place, "written": written, "rows": total, "model_hash": vectors.meta.get("model_hash")})
    else:
        console.data(place)
