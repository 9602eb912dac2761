"""`tcl data`: look at pairs before a long training, and pack them for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tcl.machine.memory import format_bytes
from tcl_cli._console import counted, format_value
from tcl_cli._console import out as console
from tcl_cli._options import (
    INPUT_PANEL,
    OUTPUT_PANEL,
    SPEED_PANEL,
    App,
    ImageColumnOption,
    ImagesOption,
    JsonOption,
    TextColumnOption,
    argument,
    option,
)

if TYPE_CHECKING:
    from tcl.data.check.figures import Listing
    from tcl.data.check.report import Limits
    from tcl.data.pairs.table import PairIndex
    from tcl.data.tokenizer import CaptionTokenizer


def table_rows(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values; `figures` is what `tcl.data.check.report.report` gives."""
    captions, images, skipped = figures["captions"], figures["images"], figures["skipped"]
    yield "pairs", str(figures["pairs"])
    yield "rows skipped", str(skipped["rows"])
    yield from _indented("first", skipped["examples"][:3])
    yield "captions", str(captions["count"])
    yield "words per caption", _summary(captions["words"])
    yield "  cut at 30 words", _share(captions["cut_at_30_words"])
    if tokens := captions["tokens"]:
        (cut,) = (name for name in tokens if name.startswith("cut_at_"))
        yield "tokens per caption", _summary(tokens)
        yield f"  {cut.replace('_', ' ')}", _share(tokens[cut])
        unknown = captions["unknown"]
        yield "[UNK] among tokens", _share(unknown["tokens"])
        yield "  captions with [UNK]", _share(unknown["captions"])
        for name in ("scripts", "characters", "words"):
            if unknown[name]:
                yield f"  {name}", ", ".join(f"{entry} {count}" for entry, count in unknown[name].items())
    yield "rows that repeat an image", _share(captions["repeated_images"])
    yield "pairs that repeat", _share(captions["repeated_pairs"])
    yield "captions shared by different images", _share(captions["shared"])
    yield "images", str(images["distinct"])
    if images["checked"] < images["distinct"]:
        yield "  read, as a sample", str(images["checked"])
    yield "  missing", _share(images["missing"])
    yield "  unreadable", _share(images["unreadable"])
    yield from _indented("why", [f"{reason}: {count}" for reason, count in images["reasons"].items()])
    yield from _indented("first", [f"{one['image']}: {one['reason']}" for one in images["examples"][:3]])
    yield "  copies of another", _share(images["copies"])
    yield "  smaller than 256 pixels", _share(images["smaller_than_256"])
    yield "  sides beyond 3 : 1", _share(images["extreme_aspect"])
    yield "  width", _summary(images["width"])
    yield "  height", _summary(images["height"])
    for name in ("formats", "modes"):
        yield f"  {name}", ", ".join(f"{entry} {count}" for entry, count in images[name].items()) or "-"
    yield "  size of the files", format_bytes(images["bytes"])


def _indented(name: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    return ((f"    {name}", line) for line in lines)


def _share(value: dict[str, float]) -> str:
    return f"{value['count']} ({value['percent']:g} %)"


def _summary(values: dict[str, float]) -> str:
    names = ("min", "median", "p95", "max")
    return ", ".join(f"{name} {format_value(values[name])}" for name in names if name in values) or "-"


LIMIT_PANEL = "Limits, in percent: beyond one of them the exit code is 1"
MAX_LENGTH = 25

EPILOG = """\
[bold]Examples[/]

  tcl data check captions.jsonl --images photos/
  tcl data pack captions.jsonl packed/ --images photos/
  tcl pretrain --data 'packed/*.tar'
"""
CHECK_EPILOG = """\
[bold]Examples[/]

  tcl data check captions.jsonl --images photos/ --tokenizer bert-base-uncased
  tcl data check photos/ --list bad.jsonl
  tcl data check captions.jsonl --sample 10000 --max-bad 1 --json
"""
PACK_EPILOG = """\
[bold]Examples[/]

  tcl data pack captions.jsonl packed/ --images photos/
  tcl data pack photos/ packed/ --size 384 --quality 95 --workers 16
  tcl pretrain --data 'packed/*.tar'

A pack that was interrupted continues where it was with the same command.
"""

app = App(
    help="Check image-text pairs, and pack them for fast training.",
    no_args_is_help=True,
    epilog=EPILOG,
)

SourcesArgument = Annotated[list[str], argument(metavar="SOURCE", help="Pairs: whatever --data of tcl pretrain takes.")]
WorkersOption = Annotated[
    int | None, option("--workers", "-w", min=1, help="Processes. Default: one per core.", panel=SPEED_PANEL)
]


def _limit(name: str, help_text: str) -> Any:
    return option(name, min=0, max=100, metavar="PERCENT", help=help_text, panel=LIMIT_PANEL)


@app.command(epilog=CHECK_EPILOG)
def check(
    sources: SourcesArgument,
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    tokenizer: Annotated[
        str | None,
        option(
            "--tokenizer",
            help="Vocabulary of the model: tokenizer.json, vocab.txt, a folder with one, or a hub id. Without it "
            "nothing is said about tokens.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        option(
            "--max-length",
            min=2,
            help=f"Tokens that the model keeps, with --tokenizer. Default: {MAX_LENGTH}.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    sample: Annotated[
        int | None,
        option(
            "--sample",
            min=1,
            help="Read only so many images, drawn at random, the same ones each time; captions are all read.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    max_bad: Annotated[float, _limit("--max-bad", "Images that are missing or unreadable.")] = 5.0,
    max_skipped: Annotated[float, _limit("--max-skipped", "Rows without image or caption.")] = 5.0,
    max_duplicates: Annotated[float, _limit("--max-duplicates", "Images whose file is a copy of another.")] = 20.0,
    max_unknown: Annotated[
        float | None,
        option(
            "--max-unknown",
            min=0,
            max=100,
            metavar="PERCENT",
            help="Tokens that are [UNK], with --tokenizer. Default: 5.".replace("[", r"\["),
            panel=LIMIT_PANEL,
        ),
    ] = None,
    listing: Annotated[
        Path | None,
        option(
            "--list",
            help="A new file, JSONL: every bad image, copy, repeated pair and shared caption, with its row.",
            panel=OUTPUT_PANEL,
        ),
    ] = None,
    json: JsonOption = False,
    workers: WorkersOption = None,
) -> None:
    """Count what is missing, unreadable, repeated, cut or unknown to the vocabulary.

    Every image is read to its end, since a file that was cut off shows only so.
    """
    from tcl.data.check.report import Limits
    from tcl.data.pairs.table import read_pairs
    from tcl.data.sources.columns import Columns
    from tcl.data.tokenizer import CaptionTokenizer
    from tcl.errors import DataError, UsageError
    from tcl.machine.processes import available_cores

    for name, value in (("--max-length", max_length), ("--max-unknown", max_unknown)):
        if value is not None and tokenizer is None:
            raise UsageError(f"{name} is about tokens", hint="name the model's vocabulary with --tokenizer")
    limits = Limits(max_bad, max_skipped, max_duplicates, Limits.unknown if max_unknown is None else max_unknown)
    vocabulary = CaptionTokenizer.load(tokenizer) if tokenizer else None
    with _listing(listing) as record:
        with console.progress("Indexing") as advance:
            index = read_pairs(sources, images, Columns(image_column, text_column), progress=advance)
        figures = _examine(
            index, vocabulary, max_length or MAX_LENGTH, sample, limits, workers or available_cores(), record
        )
    if json:
        console.json({"sources": sources} | figures)
    else:
        console.table(["figure", "value"], list(table_rows(figures)))
        if vocabulary is None:
            console.hint("for tokens and [UNK], name the model's vocabulary with --tokenizer")
    if figures["exceeded"]:
        hint = "repair the data, or raise the limit"
        if any(figures["images"][problem]["count"] for problem in ("missing", "unreadable", "copies")):
            hint += f"; {listing} names the images" if listing else "; --list FILE names the images"
        raise DataError(f"beyond the limits: {'; '.join(figures['exceeded'])}", hint)


def _examine(
    index: PairIndex,
    tokenizer: CaptionTokenizer | None,
    max_length: int,
    sample: int | None,
    limits: Limits,
    workers: int,
    listing: Listing | None,
) -> dict[str, Any]:
    """What `tcl.data.check.report.report` says of the pairs, with a bar for each pass over them."""
    from tcl.data.check.captions import check_captions
    from tcl.data.check.images import check_images
    from tcl.data.check.report import report

    with console.progress("Reading captions", len(index)) as advance:
        captions = check_captions(index, tokenizer, max_length, workers=workers, listing=listing, progress=advance)
    rows = captions.first_rows
    with console.progress("Reading images", min(len(rows), sample or len(rows))) as advance:
        found = check_images(index, rows, sample, workers=workers, listing=listing, progress=advance)
    return report(index.skipped, index.skipped_reasons, captions, found, limits)


@app.command(epilog=PACK_EPILOG)
def pack(
    sources: SourcesArgument,
    out: Annotated[Path, argument(metavar="OUT", help="A new folder, or an unfinished pack of the same pairs.")],
    images: ImagesOption = None,
    image_column: ImageColumnOption = None,
    text_column: TextColumnOption = None,
    size: Annotated[
        int, option("--size", min=16, help="Pixels of the shorter side; never enlarged.", panel=OUTPUT_PANEL)
    ] = 288,
    quality: Annotated[int, option("--quality", min=1, max=95, help="Of JPEG.", panel=OUTPUT_PANEL)] = 90,
    shard_rows: Annotated[
        int, option("--shard-rows", min=1, help="Rows of one tar file.", panel=OUTPUT_PANEL)
    ] = 10_000,
    json: JsonOption = False,
    workers: WorkersOption = None,
) -> None:
    """Write tar shards of resized images and their captions, for fast training.

    Images that are small JPEGs already are copied as they are. Unreadable ones are left out and listed in errors.jsonl.
    """
    from dataclasses import asdict

    from tcl.data.pack.pack import ERRORS, Pack, PackSettings
    from tcl.data.pairs.table import read_pairs
    from tcl.data.sources.columns import Columns
    from tcl.machine.processes import available_cores

    with console.progress("Indexing") as advance:
        index = read_pairs(sources, images, Columns(image_column, text_column), progress=advance)
    work = Pack(index, out, PackSettings(size, quality, shard_rows))
    if index.skipped:
        console.warning(
            f"{counted(index.skipped, 'rows')} without image or caption; the first is {index.skipped_reasons[0]}"
        )
    if work.shards_done:
        console.message(f"{out}: continues after {work.shards_done} of {len(work.shards)} shards")
    with console.progress("Packing", len(index), work.rows_done) as advance:
        report = work.write(workers or available_cores(), advance)
    before, after = (format_bytes(number) for number in (report.bytes_before, report.bytes_after))
    packed = f"{counted(report.images, 'images')} in {counted(report.shards, 'shards')}"
    console.message(f"{packed}, {report.copied} copied as they were; {before} before, {after} after")
    if report.failed:
        console.warning(f"{counted(report.failed, 'images')} could not be read; see {out / ERRORS}")
    if json:
        console.json({"out": str(out)} | asdict(report))
    else:
        console.data(str(out))
    console.hint(f"tcl pretrain --data {shlex.quote(f'{out}/*.tar')}")


@contextmanager
def _listing(path: Path | None) -> Iterator[Listing | None]:
    """What writes rows to `path` as JSONL; the file gets its name when all are written."""
    from json import dumps

    from tcl.errors import UsageError
    from tcl.files.atomic import atomic_file
    from tcl_cli.eval.evaluation import check_output

    if path is None:
        yield None
        return
    if path.exists():
        raise UsageError(f"{path}: exists", hint="choose another name for --list")
    check_output("--list", path, [])
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        yield lambda row: file.write(dumps(row, ensure_ascii=False) + "\n")
