"""Every kind of source gives the same images and texts to all who read it: embedding, training, checking, packing."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tcl.data.check.captions import check_captions
from tcl.data.check.images import check_images
from tcl.data.images.decode import decode
from tcl.data.inputs.listing import list_inputs
from tcl.data.labels.questions import read_questions
from tcl.data.labels.regions import read_regions
from tcl.data.labels.statements import read_statements
from tcl.data.pack.pack import Pack, PackSettings
from tcl.data.pairs.table import read_pairs
from tcl.data.sources.columns import Columns
from tcl.errors import DataError, UsageError
from tests.data.sources.test_tar import jpeg, pack

COUNT = 3
TEXTS = ["a dog 0", "a dog 1", "a dog 2"]
CELLS = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

Make = Callable[[Path], str]
"""Writes a source of three images of grey 0, 60 and 120, `a dog 0` and so on, into a folder and names it."""

SOURCES: dict[str, Make] = {}


def source(name: str) -> Callable[[Make], Make]:
    def add(make: Make) -> Make:
        SOURCES[name] = make
        return make

    return add


def images(folder: Path, template: str = "{}.jpg") -> list[str]:
    names = [template.format(number) for number in range(COUNT)]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(60 * number))
    return names


def table(folder: Path, name: str, image: str, text: str, comma: str = ",", first: str = "") -> str:
    rows = [f"{name}{comma}{caption}" for name, caption in zip(images(folder), TEXTS, strict=True)]
    (folder / name).write_text(first + "\n".join([f"{image}{comma}{text}", *rows]) + "\n")
    return str(folder / name)


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def structs(paths: list[str | None]) -> pa.Array:
    cells = [{"bytes": jpeg(60 * number), "path": path} for number, path in enumerate(paths)]
    return pa.array(cells, CELLS)


for case in ("image,caption", "Image,Caption", "filepath,title", "FILE_NAME,text"):
    image_name, _, text_name = case.partition(",")
    SOURCES[f"csv {case}"] = lambda folder, i=image_name, t=text_name: table(folder, "rows.csv", i, t)  # type: ignore[misc]
for mark, word in ((";", "semicolons"), ("\t", "tabs")):
    SOURCES[f"csv with {word}"] = lambda folder, mark=mark: table(folder, "rows.csv", "image", "caption", mark)  # type: ignore[misc]
SOURCES["csv of Excel"] = lambda folder: table(folder, "rows.csv", "image", "caption", ";", "sep=;\n")
SOURCES["tsv with commas"] = lambda folder: table(folder, "rows.tsv", "image", "caption")


@source("jsonl")
def _jsonl(folder: Path) -> str:
    rows = [{"image": name, "caption": text} for name, text in zip(images(folder), TEXTS, strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


@source("URL and TEXT of LAION")
def _laion(folder: Path) -> str:
    names = [f"{folder}/{name}" for name in images(folder)]
    return parquet(folder / "laion.parquet", URL=names, TEXT=TEXTS)


@source("metadata of img2dataset")
def _downloaded(folder: Path) -> str:
    names = [f"{folder}/{name}" for name in images(folder)]
    return parquet(folder / "00000.parquet", key=["0", "1", "2"], url=names, caption=TEXTS)


@source("parquet of img2dataset")
def _img2dataset(folder: Path) -> str:
    bytes_ = [jpeg(60 * number) for number in range(COUNT)]
    urls = [f"https://nowhere.invalid/{number}.jpg" for number in range(COUNT)]
    return parquet(folder / "00000.parquet", url=urls, caption=TEXTS, status=["success"] * COUNT, jpg=bytes_)


@source("parquet of bytes")
def _bytes(folder: Path) -> str:
    bytes_ = [jpeg(60 * number) for number in range(COUNT)]
    return parquet(folder / "rows.parquet", Image=bytes_, caption=TEXTS)


@source("parquet of Hugging Face")
def _hugging_face(folder: Path) -> str:
    return parquet(folder / "train.parquet", image=structs(["x.jpg", None, "z.jpg"]), text=TEXTS)


@source("folder of parquet files")
def _parquet_folder(folder: Path) -> str:
    (folder / "data").mkdir()
    cells = structs([None] * COUNT)
    parquet(folder / "data/a-0.parquet", image=cells[:2], text=TEXTS[:2])
    parquet(folder / "data/a-1.parquet", image=cells[2:], text=TEXTS[2:])
    return str(folder)


@source("folder with texts")
def _folder(folder: Path) -> str:
    for number, name in enumerate(images(folder, "in/{}.jpg")):
        (folder / name).with_suffix(".txt").write_text(TEXTS[number])
    return str(folder)


@source("linked sub-folder")
def _linked(folder: Path) -> str:
    _folder(folder / "real")
    (folder / "seen").mkdir()
    (folder / "seen/link").symlink_to(folder / "real")
    (folder / "seen/again").symlink_to(folder / "real/in")
    (folder / "real/in/loop").symlink_to(folder / "seen")
    return str(folder / "seen")


@source("glob of images")
def _glob(folder: Path) -> str:
    return f"{_folder(folder)}/*/*.jpg"


@source("braces of images")
def _braces(folder: Path) -> str:
    return f"{_folder(folder)}/in/{{0..2}}.jpg"


@source("braces of folders")
def _brace_folders(folder: Path) -> str:
    for number, name in enumerate(images(folder, "part{0}/{0}.jpg")):
        (folder / name).with_suffix(".txt").write_text(TEXTS[number])
    return f"{folder}/part{{0,1,2}}"


for kind in ("csv", "jsonl", "parquet"):

    @source(f"metadata.{kind} in a folder")
    def _metadata(folder: Path, kind: str = kind) -> str:
        rows = dict(zip(images(folder / "in"), TEXTS, strict=True))
        path = folder / "in" / f"metadata.{kind}"
        if kind == "csv":
            path.write_text("file_name,text\n" + "".join(f"{name},{text}\n" for name, text in rows.items()))
        elif kind == "jsonl":
            lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows.items()]
            path.write_text("\n".join(lines))
        else:
            parquet(path, file_name=list(rows), text=list(rows.values()))
        return str(folder)


def members(numbers: list[int]) -> list[tuple[str, bytes | str]]:
    return [
        part for n in numbers for part in ((f"{n}.jpg", jpeg(60 * n)), (f"{n}.json", json.dumps({"caption": TEXTS[n]})))
    ]


@source("shard")
def _shard(folder: Path) -> str:
    return pack(folder / "0.tar", members([0, 1, 2]))


@source("shard whose texts do not stand beside its images")
def _scattered(folder: Path) -> str:
    first = [(f"{n}.jpg", jpeg(60 * n)) for n in range(COUNT)]
    return pack(folder / "0.tar", [*first, *((f"{n}.txt", TEXTS[n]) for n in (2, 0, 1))])


@source("shard whose json and txt do not stand together")
def _apart(folder: Path) -> str:
    parts = [*members([0, 1, 2]), *((f"{n}.txt", "not this one") for n in range(COUNT))]
    return pack(folder / "0.tar", parts)


@source("folder of shards")
def _shards(folder: Path) -> str:
    (folder / "in").mkdir()
    pack(folder / "in/2.tar", members([0, 1]))
    pack(folder / "in/10.tar", members([2]))
    parquet(folder / "in/2.parquet", url=["http://nowhere.invalid"], caption=["beside the shard"])
    return str(folder)


AUTO_IS_TEXT = ("csv FILE_NAME,text", "parquet of bytes")
"""What `tcl embed` took for texts before it knew the other column: it still does, if not told."""


def grey(reference: str) -> int:
    return decode(reference).getpixel((0, 0))[0]  # type: ignore[index]


@pytest.mark.parametrize("kind", SOURCES)
def test_all_read_the_same(kind: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    named = SOURCES[kind](tmp_path / "data")
    embedded = list_inputs(named, "auto" if kind not in AUTO_IS_TEXT else "image")
    assert [grey(embedded.location(row)) for row in range(len(embedded))] == [0, 60, 120]
    assert embedded.warnings == () and len(set(embedded.ids)) == COUNT
    if "braces of" not in kind and "glob of" not in kind:
        assert list(list_inputs(named, "text").values) == TEXTS

    index = read_pairs([named])
    assert [(grey(pair.image), pair.captions) for pair in index] == [(60 * n, [TEXTS[n]]) for n in range(COUNT)]
    assert index.skipped == 0 and len({pair.image_id for pair in index}) == COUNT

    captions = check_captions(index)
    found = check_images(index, captions.first_rows)
    assert (captions.captions, found.checked, found.bad) == (COUNT, COUNT, 0)

    report = Pack(index, tmp_path / "packed", PackSettings()).write()
    assert (report.images, report.failed) == (COUNT, 0)
    packed = read_pairs([str(tmp_path / "packed")])
    assert [(grey(pair.image), pair.captions) for pair in packed] == [(60 * n, [TEXTS[n]]) for n in range(COUNT)]
    assert packed.fingerprint == index.fingerprint


def labelled(folder: Path, kind: str) -> str:
    """Three rows with an image, a text, a label, an answer and a box."""
    names = images(folder)
    rows: list[dict[str, Any]] = [
        {"text": text, "label": "yes", "question": text, "answer": "no", "box": "0 0 4 4"} for text in TEXTS
    ]
    if kind == "metadata.jsonl":
        lines = [json.dumps({"file_name": name, **row}) for name, row in zip(names, rows, strict=True)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        return str(folder)
    if kind == "shard":
        parts = [((f"{n}.jpg", jpeg(60 * n)), (f"{n}.json", json.dumps(row))) for n, row in enumerate(rows)]
        return pack(folder / "0.tar", [part for both in parts for part in both])
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    if kind == "parquet of Hugging Face":
        return parquet(folder / "rows.parquet", image=structs([None] * COUNT), **columns)
    return parquet(folder / "rows.parquet", Image=names, **columns)


@pytest.mark.parametrize("kind", ["metadata.jsonl", "shard", "parquet of Hugging Face", "parquet of paths"])
def test_labelled_rows_come_from_the_same_sources(kind: str, tmp_path: Path) -> None:
    named = labelled(tmp_path, kind)
    for reader in (
        lambda: [(row.images[0], row.text) for row in read_statements("entailment", [named])],
        lambda: [(row.image, row.question) for row in read_questions([named])],
        lambda: [(row.image, row.text) for row in read_regions([named])],
        lambda: [(pair.image, pair.captions[0]) for pair in read_pairs([named])],
    ):
        assert [(grey(image), text) for image, text in reader()] == [(60 * n, TEXTS[n]) for n in range(COUNT)]


def test_columns_of_any_name(tmp_path: Path) -> None:
    names = images(tmp_path)
    plain = table(tmp_path, "rows.csv", "Bild", "Wort")
    stored = parquet(tmp_path / "rows.parquet", Bild=structs([None] * COUNT), Wort=TEXTS, caption=["no"] * COUNT)
    texts = [(f"{n}.json", json.dumps({"Wort": text})) for n, text in enumerate(TEXTS)]
    shard = pack(tmp_path / "0.tar", [*((name, jpeg(60 * n)) for n, name in enumerate(names)), *texts])
    rows = list(read_statements("entailment", [stored], columns=Columns("Bild", "Wort"), need_labels=False))
    assert [(grey(row.images[0]), row.text) for row in rows] == [(60 * n, TEXTS[n]) for n in range(COUNT)]
    for named in (plain, stored, shard):
        index = read_pairs([named], columns=Columns("bild", "Wort"))
        assert [(grey(pair.image), pair.captions) for pair in index] == [(60 * n, [TEXTS[n]]) for n in range(COUNT)]
        assert list(list_inputs(named, "text", text_column="Wort").values) == TEXTS
        with pytest.raises((DataError, UsageError)):
            read_pairs([named], columns=Columns("bild", "absent"))
    assert len(list_inputs(stored, "image", image_column="BILD")) == COUNT
    with pytest.raises(UsageError, match="no column absent among Bild, Wort") as caught:
        read_pairs([plain], columns=Columns("Bild", "absent"))
    assert caught.value.hint == "check --text-column"


def test_a_name_in_another_case_counts_where_the_usual_one_is_absent(tmp_path: Path) -> None:
    rows = [{"image": "", "Image": "b.jpg", "caption": "x"}, {"Image": "b.jpg", "path": "a.jpg", "caption": "x"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = read_pairs([str(tmp_path / "rows.jsonl")])
    assert ([pair.image_id for pair in index], index.skipped) == (["a.jpg"], 1)


@pytest.mark.parametrize("text", ["img/1.jpg,a dog\nimg/2.jpg,a cat\n", "img/1.jpg\nimg/2.jpg\n"])
def test_a_table_without_a_header_says_so(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(text)
    for read in (lambda name: read_pairs([name]), lambda name: list_inputs(name, "image")):
        with pytest.raises(UsageError, match=r"its first line is a row, and no header: img/1\.jpg") as caught:
            read(str(tmp_path / "rows.csv"))
        assert "\n" not in caught.value.message and "image,caption" in str(caught.value.hint)


def test_a_number_is_its_text(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "caption": value} for value in (42, 4.5, [7, "x", None], float("nan"), {}, None)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = read_pairs([str(tmp_path / "rows.jsonl")])
    assert [pair.captions for pair in index] == [["42"], ["4.5"], ["7", "x"]] and index.skipped == 3
    assert list(list_inputs(str(tmp_path / "rows.jsonl"), "text").values) == ["42", "4.5", "7", "x", "", "", "", ""]
    labels = [{"image": "a.jpg", "text": 42, "question": 7, "label": 1, "answer": 2, "box": [0, 0, 1, 1]}]
    (tmp_path / "labels.jsonl").write_text(json.dumps(labels[0]))
    named = [str(tmp_path / "labels.jsonl")]
    assert next(iter(read_statements("entailment", named))).text == next(iter(read_regions(named))).text == "42"
    assert next(iter(read_questions(named))).question == "7"


def test_images_that_no_metadata_names_are_said(tmp_path: Path) -> None:
    images(tmp_path)
    (tmp_path / "metadata.csv").write_text(
        "file_name,text,split\n0.jpg,a dog,train\n1.jpg,a cat,val\nsub/9.jpg,x,val\n"
    )
    index = read_pairs([str(tmp_path)])
    assert [pair.image_id for pair in index] == ["0.jpg", "1.jpg", "sub/9.jpg"]
    assert index.skipped_reasons == [f"{tmp_path}/2.jpg: no row of metadata.csv names it"]
    assert [pair.image_id for pair in read_pairs([f"{tmp_path}#split=train"])] == ["0.jpg"]
    (tmp_path / "2.txt").write_text("a bird")  # as before there were metadata files
    assert [pair.image_id for pair in read_pairs([str(tmp_path)])] == ["2.jpg"]


def test_a_caption_cut_by_a_comma_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image,caption\na.jpg,a dog\nb.jpg,a cat, asleep\n")
    texts = list_inputs(str(tmp_path / "rows.csv"), "text")
    assert texts.values == ["a dog", ""] and "more cells than columns" in texts.warnings[0]
    assert list_inputs(str(tmp_path / "rows.csv"), "image").ids == ["a.jpg", "b.jpg"]


def test_names_out_of_a_shard_are_refused_by_all(tmp_path: Path) -> None:
    named = pack(tmp_path / "0.tar", [("../up.jpg", jpeg(0)), ("../up.txt", "x"), *members([1])])
    with tarfile.open(named, "a") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "1.jpg"
        tar.addfile(link)
    inputs, index = list_inputs(named), read_pairs([named])
    assert inputs.ids == ["1.jpg"] and len(index) == 1
    assert list(inputs.warnings) == [f"{reason}; left out" for reason in index.skipped_reasons]


def test_rows_of_parquet_are_listed_without_their_images(tmp_path: Path) -> None:
    column = pa.array([bytes(1 << 20)] * 64)
    named = parquet(tmp_path / "rows.parquet", image=column, caption=["a dog"] * 64)
    del column
    before = pa.default_memory_pool().max_memory()
    assert len(read_pairs([named])) == len(list_inputs(named)) == 64
    assert pa.default_memory_pool().max_memory() - before < 8 << 20
