"""The report of `tcl data check` as the lines of a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tcl.machine.memory import format_bytes
from tcl_cli._console import format_value


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
