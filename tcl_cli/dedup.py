"""`tcl dedup`: near-duplicates among embedded images or texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tcl.errors import UsageError
from tcl_cli._console import counted
from tcl_cli._console import out as console
from tcl_cli._options import INPUT_PANEL, OUTPUT_PANEL, App, argument, option

if TYPE_CHECKING:
    from tcl.search.dedup import Group

EPILOG = """\
[bold]Examples[/]

  tcl dedup vecs.npy --threshold 0.97 --html duplicates.html
  tcl dedup vecs.npy --out duplicates.jsonl --json

Each line is a group: the input that is kept, which is the first one, and its duplicates with their cosine. A \
duplicate is linked to the group by some pair above the threshold, so its cosine with the one that is kept may be lower.
"""


app = App()


@app.command(epilog=EPILOG)
def dedup(
    vectors: Annotated[Path, argument(metavar="VECTORS", help="What `tcl embed` wrote: a file, or a folder of parts.")],
    threshold: Annotated[
        float, option("--threshold", "-t", help="Cosine from which two inputs are near-duplicates; above 0, up to 1.")
    ] = 0.95,
    images: Annotated[
        Path | None,
        option(
            "--images",
            help="Where the embedded images are now, for --html. Default: where they were embedded from.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    out: Annotated[
        Path | None, option("--out", "-o", help="Write the groups here, as JSONL. Default: stdout.", panel=OUTPUT_PANEL)
    ] = None,
    html: Annotated[
        Path | None, option("--html", help="Also write a page with thumbnails.", panel=OUTPUT_PANEL)
    ] = None,
    json: Annotated[
        bool,
        option(
            "--json",
            help="Print one JSON object instead: the counts and, without --out, the groups as entries.",
            panel=OUTPUT_PANEL,
        ),
    ] = False,
) -> None:
    """Find groups of near-duplicates."""
    from tcl.search.dedup import find_groups, groups_of
    from tcl.vectors.reader import VectorFile
    from tcl_cli.eval.evaluation import check_output

    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold}: a cosine above 0, up to 1", hint="for example --threshold 0.95")
    if images is not None and html is None:
        raise UsageError("--images is for --html", hint="leave it out")
    if out is not None and out == html:
        raise UsageError(f"--out and --html are both {out}", hint="choose another name for one of them")
    opened = VectorFile.open(vectors)
    for name, path, suffix in (("--out", out, ".jsonl"), ("--html", html, ".html")):
        check_output(name, path, [str(file) for file in opened.belongings], suffix)
    with console.progress("Comparing", len(opened)) as advance:
        first = find_groups(opened, threshold, advance)
    entries: list[dict[str, Any]] | None = [] if json and out is None else None
    counts = {"rows": len(opened)} | _write_groups(groups_of(opened, first), out, entries)
    summary = f"{counted(counts['duplicates'], 'near-duplicates')} in {counted(counts['groups'], 'groups')}"
    summary += f", among {counted(counts['rows'], 'inputs')}"
    console.message(summary)
    if html is not None:
        root = Path(str(opened.meta.get("root", ""))) if images is None else images
        _write_html(html, groups_of(opened, first), summary, opened.kind, root)
    if json:
        given = {} if entries is None else {"entries": entries}
        console.json(counts | {"threshold": threshold, "out": None if out is None else str(out)} | given)
    elif out is not None:
        console.data(str(out))


def _write_groups(groups: Iterator[Group], out: Path | None, entries: list[dict[str, Any]] | None) -> dict[str, int]:
    """Write a line per group to `out`, add it to `entries`, or print it; how many groups and duplicates there were."""
    from tcl_cli.eval.evaluation import write_lines

    counts = {"groups": 0, "duplicates": 0}

    def rows() -> Iterator[dict[str, Any]]:
        for group in groups:
            counts["groups"] += 1
            counts["duplicates"] += len(group.duplicates)
            yield group.to_json()

    if out is not None:
        write_lines(out, rows())
    elif entries is not None:
        entries.extend(rows())
    else:
        for row in rows():
            console.json(row)
    return counts


def _write_html(path: Path, groups: Iterator[Group], note: str, kind: str, root: Path) -> None:
    from tcl.search.page import Section, write_page

    sections = (
        Section(f"{len(group.duplicates)} like {group.kept.id}", [group.kept, *group.duplicates]) for group in groups
    )
    write_page(path, "tcl dedup", note, sections, kind, root)
    console.message(str(path))
