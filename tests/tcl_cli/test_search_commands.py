"""`tcl search`, `tcl index` and `tcl dedup` as people type them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl.encoders.embedder import Embedder
from tcl.encoders.torch import TorchEncoder, TorchMatcher
from tcl.models.tcl import TCL
from tcl.vectors.writer import VectorWriter
from tests.tcl_cli.conftest import Result

Tcl = Callable[..., Result]
TEXTS = ["a red circle", "a dog on the grass", "a green star"]
NAMES = ["1.png", "2.png", "10.png"]


@pytest.fixture
def vectors(workplace: Path, tiny_model: TCL) -> Path:
    """`vecs.npy` of `images/` and `texts.npy` of three captions."""
    embedder = Embedder(TorchEncoder(tiny_model))
    images = embedder.encode_images([workplace / "images" / name for name in NAMES])
    texts = embedder.encode_texts(TEXTS)
    root = str(workplace / "images")
    for name, kind, found, values in (("vecs", "image", images, NAMES), ("texts", "text", texts, TEXTS)):
        writer = VectorWriter(Path(f"{name}.npy"), 16, "float32", "text" if kind == "text" else "path")
        writer.append(NAMES if kind == "image" else ["1", "2", "3"], values, found)
        writer.finish({"kind": kind, "count": 3, "model_hash": tiny_model.model_hash, "dim": 16, "root": root})
    return workplace


class Page(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_table(vectors: Path, tcl: Tcl) -> None:
    found = tcl("search", "a red circle", "--index", "texts.npy", "--top", "2")
    assert found.code == 0
    lines = found.stdout.splitlines()
    assert lines[:2] == ["rank\tscore\tid\ttext", "1\t1\t1\ta red circle"] and len(lines) == 3
    assert re.search(r"encoded on torch-cpu \(fp32\) in [\d.]+ m?s, 3 vectors searched in [\d.e-]+ m?s\n", found.stderr)


def test_json(vectors: Path, tcl: Tcl) -> None:
    result = json.loads(tcl("search", "images/10.png", "--index", "vecs.npy", "--json").stdout)
    assert result["hits"][0]["id"] == "10.png" and result["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert [hit["rank"] for hit in result["hits"]] == [1, 2, 3]
    assert set(result["seconds"]) == {"encode", "search"}


def test_a_long_query(vectors: Path, tcl: Tcl) -> None:
    assert tcl("search", "a red circle " * 60, "--index", "vecs.npy").code == 0


@pytest.mark.parametrize("query", ["a red circle", "images/1.png"])
def test_reranked(vectors: Path, tcl: Tcl, query: str) -> None:
    index = "texts.npy" if query.endswith(".png") else "vecs.npy"
    found = tcl("search", query, "--index", index, "--rerank", "2", "--json")
    hits = json.loads(found.stdout)["hits"]
    assert [("match" in hit) for hit in hits] == [True, True, False]
    assert all(0 < hit["match"] < 1 for hit in hits[:2]) and "re-ranked in" in found.stderr
    assert tcl("search", query, "--index", index, "--rerank", "2").stdout.startswith("rank\tscore\tlogit\tmatch\tid")


def test_reranked_from_kept_tokens(vectors: Path, tcl: Tcl, tiny_model: TCL) -> None:
    command = ("search", "a red circle", "--rerank", "3", "--json", "--index")
    expected = json.loads(tcl(*command, "vecs.npy").stdout)["hits"]
    pixels = tiny_model.processor.images([f"images/{name}" for name in NAMES])
    tokens = TorchMatcher(tiny_model).image_tokens(pixels)[1].astype(np.float16)
    writer = VectorWriter(Path("kept.npy"), 16, "float32", "path", token_shape=(tokens.shape[1], tokens.shape[2]))
    writer.append(NAMES, NAMES, np.load("vecs.npy"), tokens)
    writer.finish(json.loads(Path("vecs.meta.json").read_text()))
    shutil.rmtree("images")
    found = json.loads(tcl(*command, "kept.npy").stdout)["hits"]
    assert [hit["id"] for hit in found] == [hit["id"] for hit in expected]
    assert [hit["match"] for hit in found] == pytest.approx([hit["match"] for hit in expected], abs=5e-3)
    np.save("kept.tokens.npy", np.roll(tokens, 1, axis=0))
    refused = tcl(*command, "kept.npy")
    assert refused.code == 1 and "is not what was kept with its vector" in refused.stderr
    assert "put back what `tcl embed --keep-tokens` wrote" in refused.stderr


def test_images_that_moved(vectors: Path, tcl: Tcl) -> None:
    (vectors / "images").rename(vectors / "moved")
    command = ["search", "a red circle", "--index", "vecs.npy", "--rerank", "2"]
    failed = tcl(*command)
    assert failed.code == 1 and "--images" in failed.stderr
    assert tcl(*command, "--images", "moved").code == 0


def test_one_image_that_has_gone(vectors: Path, tcl: Tcl) -> None:
    Path("images/2.png").unlink()
    Path("queries.txt").write_text("a red circle\na blue square\n")
    found = tcl("search", "--queries", "queries.txt", "--index", "vecs.npy", "--rerank", "3")
    assert found.code == 0 and found.stderr.count("Warning: 1 hit not re-ranked") == 1 and "2.png" in found.stderr
    for line in found.stdout.splitlines():
        *others, last = json.loads(line)["hits"]
        assert len(others) == 2 and all("match" in hit for hit in others)
        assert last["id"] == "2.png" and "match" not in last and "no such file" in last["unread"] and last["score"]
    assert tcl("search", "a red circle", "--index", "vecs.npy", "--rerank", "3", "--html", "hits.html").code == 0


def test_words_that_the_vocabulary_does_not_know(vectors: Path, tcl: Tcl) -> None:
    refused = tcl("search", "一只狗", "--index", "vecs.npy")
    assert refused.code == 2 and "knows no word of the query '一只狗'" in refused.stderr
    assert "--allow-unknown" in refused.stderr and refused.stdout == ""
    found = tcl("search", "一只狗", "--index", "vecs.npy", "--allow-unknown")
    assert found.code == 0 and "Warning: 1 of 1 texts contains words" in found.stderr and "nothing else" in found.stderr
    found = tcl("search", "a red 狗 circle", "--index", "vecs.npy")
    assert found.code == 0 and "Warning: 1 of 1 texts contains words that the model's vocabulary" in found.stderr
    assert "Warning" not in tcl("search", "a red circle", "--index", "vecs.npy").stderr
    Path("queries.txt").write_text("a red circle\n一只狗\n", encoding="utf-8")
    found = tcl("search", "--queries", "queries.txt", "--index", "vecs.npy")
    assert found.code == 0 and len(found.stdout.splitlines()) == 2
    assert "Warning: 1 of 2 texts contains words" in found.stderr and "1 of them nothing else" in found.stderr


def test_a_vector_as_query_needs_no_model(vectors: Path, tcl: Tcl) -> None:
    row = np.load("vecs.npy")[1]
    np.save("query.npy", row * 3)
    shutil.rmtree("runs")
    for content in (row * 3, row[None].astype(np.float16)):
        np.save("query.npy", content)
        hits = json.loads(tcl("search", "query.npy", "--index", "vecs.npy", "--json").stdout)["hits"]
        assert hits[0]["id"] == "2.png" and hits[0]["score"] == pytest.approx(1, abs=1e-3)


def test_centred(vectors: Path, tcl: Tcl) -> None:
    """Without their mean, three vectors lie around the origin."""
    scores = {}
    for option in ((), ("--centre",)):
        hits = json.loads(tcl("search", "images/1.png", "--index", "vecs.npy", "--json", *option).stdout)["hits"]
        scores[option] = [hit["score"] for hit in hits]
    assert scores["--centre",][0] == pytest.approx(1, abs=1e-4)
    assert scores["--centre",][1] < scores[()][1] and sum(scores["--centre",][1:]) < 0


def test_many_queries(vectors: Path, tcl: Tcl) -> None:
    Path("queries.txt").write_text("a red circle\n\nimages/2.png\n")
    found = tcl("search", "--queries", "queries.txt", "--index", "vecs.npy", "-k", "2")
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert [row["query"] for row in rows] == ["a red circle", "images/2.png"]
    assert rows[1]["hits"][0]["id"] == "2.png" and all(len(row["hits"]) == 2 for row in rows)
    assert "2 queries: encoded on torch-cpu (fp32) in" in found.stderr
    one = json.loads(tcl("search", "a red circle", "--index", "vecs.npy", "-k", "2", "--json").stdout)
    assert [hit["id"] for hit in one["hits"]] == [hit["id"] for hit in rows[0]["hits"]]

    Path("queries.jsonl").write_text('{"query": "a dog", "id": 7}\n{"image": "images/1.png"}\n{"text": "a star"}\n')
    done = tcl("search", "--queries", "queries.jsonl", "--index", "texts.npy", "--out", "hits.jsonl", "--json")
    assert json.loads(done.stdout)["queries"] == 3
    rows = [json.loads(line) for line in Path("hits.jsonl").read_text().splitlines()]
    assert [(row.get("id"), row["query"]) for row in rows] == [("7", "a dog"), (None, "images/1.png"), (None, "a star")]

    rows = [
        json.loads(line) for line in tcl("search", "--queries", "vecs.npy", "--index", "vecs.npy").stdout.splitlines()
    ]
    assert [row["hits"][0]["id"] for row in rows] == NAMES

    reranked = tcl("search", "--queries", "queries.txt", "--index", "vecs.npy", "--rerank", "2")
    assert reranked.code == 2 and "both images" in reranked.stderr
    Path("queries.txt").write_text("a red circle\na dog\n")
    reranked = tcl("search", "--queries", "queries.txt", "--index", "vecs.npy", "--rerank", "2")
    assert [len([h for h in json.loads(line)["hits"] if "match" in h]) for line in reranked.stdout.splitlines()] == [
        2,
        2,
    ]


def test_a_text_is_a_text_whatever_it_names(vectors: Path, tcl: Tcl) -> None:
    Path("README").write_text("x")
    rows = [{"text": "README"}, {"text": "https://example.org/a.jpg"}, {"text": "a.jpg"}]
    Path("queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = tcl("search", "--queries", "queries.jsonl", "--index", "texts.npy")
    assert done.code == 0 and len(done.stdout.splitlines()) == 3


def test_an_image_finds_itself(workplace: Path, tcl: Tcl) -> None:
    """A JPEG of many pixels, which `tcl embed` decodes at a fraction of them."""
    noise = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save("images/large.jpg")
    assert tcl("embed", "images", "--out", "vecs.npy").code == 0
    hits = json.loads(tcl("search", "images/large.jpg", "--index", "vecs.npy", "--json").stdout)["hits"]
    assert hits[0]["id"] == "large.jpg" and hits[0]["score"] == pytest.approx(1, abs=1e-6)


def test_page(vectors: Path, tcl: Tcl) -> None:
    query = 'a "red" <script>alert(1)</script> circle'
    assert tcl("search", query, "--index", "vecs.npy", "--rerank", "1", "--html", "hits.html").code == 0
    page = Page(Path("hits.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and query in page.text
    assert "Content-Security-Policy" in Path("hits.html").read_text(encoding="utf-8")
    assert len(page.sources) == 3 and all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert all(name in page.text for name in NAMES) and "match" in page.text
    Path("images/1.png").write_bytes(b"x")
    assert tcl("search", "images/2.png", "--index", "vecs.npy", "--html", "hits.html").code == 0
    page = Page(Path("hits.html").read_text(encoding="utf-8"))
    assert len(page.sources) == 3 and "not an image" in page.text  # the query, and two of three hits
    Path("queries.txt").write_text("a red circle\na dog\n")
    assert tcl("search", "--queries", "queries.txt", "--index", "texts.npy", "--html", "hits.html").code == 0
    page = Page(Path("hits.html").read_text(encoding="utf-8"))
    assert page.tags.count("h2") == 2 and not page.sources and all(text in page.text for text in TEXTS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["x", "--index", "none.npy"], 2, "none.npy: no such file"),
        (["x", "--index", "queries.txt"], 2, "not a file of vectors"),
        (["x", "--index", "none.faiss"], 2, "none.faiss: no such file"),
        (["x", "--index", "lancedb:none"], 2, "no table"),
        (["x", "--index", "vecs.npy", "--ann"], 2, "vecs.faiss"),
        (["x", "--index", "vecs.npy", "--ann", "--centre"], 2, "--centre compares every vector"),
        (["x", "--index", "vecs.npy", "--ann", "--exact"], 2, "--ann and --exact exclude each other"),
        (["", "--index", "vecs.npy"], 2, "holds no words"),
        (["...", "--index", "vecs.npy"], 2, "holds no words"),
        (["x", "--index", "vecs.npy", "--top", "0"], 2, "--top"),
        (["x", "--index", "vecs.npy", "--rerank", "0"], 2, "--rerank"),
        (["x", "--index", "vecs.npy", "--backend", "onnxtrt"], 2, "for '--backend': 'onnxtrt' is not one of 'auto',"),
        (["missing.jpg", "--index", "vecs.npy"], 2, "missing.jpg: no such image"),
        (["x", "--index", "texts.npy", "--rerank", "2"], 2, "query and vectors are both texts"),
        (["queries.txt", "--index", "vecs.npy"], 1, "cannot read image queries.txt"),
        (["--index", "vecs.npy"], 2, "give a QUERY or --queries"),
        (["x", "--queries", "queries.txt", "--index", "vecs.npy"], 2, "give a QUERY or --queries"),
        (["x", "--out", "o.jsonl", "--index", "vecs.npy"], 2, "--out takes the results of --queries"),
        (["--queries", "queries.txt", "--json", "--index", "vecs.npy"], 2, "prints JSONL by itself"),
        (["--queries", "queries.txt", "--out", "no/o.jsonl", "--index", "vecs.npy"], 2, "no folder no"),
        (["--queries", "queries.txt", "--index", "vecs.npy"], 2, "queries.txt line 2: the query '...' holds no words"),
        (["--queries", "none.txt", "--index", "vecs.npy"], 2, "none.txt: no such file"),
        (["--queries", "queries.csv", "--index", "vecs.npy"], 2, "queries are read from .txt"),
        (["--queries", "empty.txt", "--index", "vecs.npy"], 1, "empty.txt: holds no query"),
        (["--queries", "bad.jsonl", "--index", "vecs.npy"], 1, "bad.jsonl line 1: malformed JSON"),
        (["--queries", "keys.jsonl", "--index", "vecs.npy"], 1, "keys.jsonl line 1: no query"),
        (["--queries", "latin.txt", "--index", "vecs.npy"], 1, "latin.txt line 2: not UTF-8"),
        (["--queries", "latin.jsonl", "--index", "vecs.npy"], 1, "latin.jsonl line 1: not UTF-8"),
        (["vecs.npy", "--index", "vecs.npy"], 2, "vecs.npy: holds 3 vectors"),
        (["zero.npy", "--index", "vecs.npy"], 1, "row 0 is not finite, or zero"),
        (["short.npy", "--index", "vecs.npy"], 1, "4 entries"),
        (["short.npy", "--index", "vecs.npy", "--rerank", "2"], 2, "not at vectors"),
        (["x", "--index", "vecs.npy", "--html", "no/h.html"], 2, "no folder no"),
        (["images/1.png", "--index", "vecs.npy", "--html", "images/1.png"], 2, "must end in .html"),
        (["--queries", "queries.txt", "--out", "images/1.png", "--index", "vecs.npy"], 2, "must end in .jsonl"),
        (["x", "--index", "vecs.npy", "--html", "vecs.npy"], 2, "--html vecs.npy is the data itself"),
        (["x", "--index", "vecs.npy", "--html", "vecs.ids.jsonl"], 2, "vecs.ids.jsonl is the data itself"),
        (["--queries", "queries.txt", "--out", "vecs.meta.json", "--index", "vecs.npy"], 2, "is the data itself"),
        (["--queries", "queries.txt", "--html", "queries.txt", "--index", "vecs.npy"], 2, "is the data itself"),
        (["--queries", "texts.npy", "--html", "texts.ids.jsonl", "--index", "vecs.npy"], 2, "is the data itself"),
        (["--queries", "queries.txt", "--out", "o", "--html", "o", "--index", "vecs.npy"], 2, "are both o"),
        (["x", "--index", "vecs.npy", "--images", "images"], 2, "--images is for --rerank and --html"),
        (["missing.npy", "--index", "vecs.npy"], 2, "missing.npy: no such file"),
        (["--queries", "blank.jsonl", "--index", "vecs.npy"], 2, "line 1: the query '' holds no words"),
        (["--queries", "unnamed.jsonl", "--index", "vecs.npy"], 1, "unnamed.jsonl line 1: names no image"),
    ],
)
def test_bad_input(vectors: Path, tcl: Tcl, arguments: list[str], code: int, message: str) -> None:
    Path("queries.txt").write_text("a dog\n...\n")
    Path("empty.txt").write_text("\n")
    Path("bad.jsonl").write_text("{\n")
    Path("keys.jsonl").write_text('{"question": "a dog"}\n')
    Path("blank.jsonl").write_text('{"text": ""}\n')
    Path("unnamed.jsonl").write_text('{"image": " "}\n')
    Path("latin.txt").write_bytes(b"a dog\ncaf\xe9\n")
    Path("latin.jsonl").write_bytes(b'{"query": "caf\xe9"}\n')
    np.save("zero.npy", np.zeros((1, 16), np.float32))
    np.save("short.npy", np.ones((1, 4), np.float32))
    found = tcl("search", *arguments)
    assert found.code == code
    assert message in found.stderr and "Traceback" not in found.stderr and "hits" not in found.stdout
    assert not Path("o.jsonl").exists()


def test_images_of_queries_that_cannot_be_read(vectors: Path, tcl: Tcl) -> None:
    """They are named with the file and the line they stand in."""
    Path("broken.png").write_bytes(b"nonsense")
    for second, reason in (('{"image": "gone.png"}', "no such file"), ('{"query": "broken.png"}', "not an image")):
        Path("q.jsonl").write_text(f'{{"text": "a dog"}}\n{second}\n')
        found = tcl("search", "--queries", "q.jsonl", "--index", "vecs.npy")
        assert found.code == 1 and reason in found.stderr
        assert found.stderr.startswith("Error: q.jsonl line 2: cannot read image ")
    alone = tcl("search", "broken.png", "--index", "vecs.npy")
    assert alone.code == 1 and "Error: cannot read image broken.png: not an image" in alone.stderr


def test_vectors_of_another_model(vectors: Path, tcl: Tcl) -> None:
    meta = json.loads(Path("vecs.meta.json").read_text())
    Path("vecs.meta.json").write_text(json.dumps(meta | {"model_hash": "0" * 64}))
    found = tcl("search", "a red circle", "--index", "vecs.npy")
    assert (found.code, found.stdout) == (2, "") and "vectors of another model" in found.stderr
    found = tcl("search", "--queries", "texts.npy", "--index", "vecs.npy")
    assert found.code == 2 and "vectors of another model" in found.stderr


def test_index_and_search_by_it(vectors: Path, tcl: Tcl) -> None:
    pytest.importorskip("faiss")
    made = tcl("index", "vecs.npy")
    assert (made.code, made.stdout) == (0, "vecs.faiss\n")
    assert "flat index of 3 vectors" in made.stderr and "recall@10 against exact search: 1.000" in made.stderr
    exact = json.loads(tcl("search", "a red circle", "--index", "vecs.npy", "--json").stdout)["hits"]
    for arguments in (("--index", "vecs.faiss"), ("--index", "vecs.npy", "--ann")):
        hits = json.loads(tcl("search", "a red circle", "--json", *arguments).stdout)["hits"]
        assert [hit["id"] for hit in hits] == [hit["id"] for hit in exact]
    assert tcl("search", "a red circle", "--index", "vecs.faiss", "--rerank", "2").code == 0
    refused = tcl("index", "vecs.npy")
    assert refused.code == 2 and "vecs.faiss: exists" in refused.stderr
    report = json.loads(tcl("index", "vecs.npy", "--restart", "--kind", "hnsw", "--json").stdout)
    assert (report["kind"], report["count"], report["recall_at_10"]) == ("hnsw", 3, 1.0)
    wrong = tcl("index", "vecs.npy", "--out", "vecs.index")
    assert wrong.code == 2 and "written as .faiss" in wrong.stderr


def test_index_to_a_table(vectors: Path, tcl: Tcl) -> None:
    pytest.importorskip("lancedb")
    made = tcl("index", "vecs.npy", "--to", "lancedb:db/photos")
    assert (made.code, made.stdout) == (0, "lancedb:db/photos\n") and "3 rows written, 3 in the table" in made.stderr
    assert json.loads(tcl("index", "vecs.npy", "--to", "lancedb:db/photos", "--json").stdout)["rows"] == 3
    exact = json.loads(tcl("search", "a red circle", "--index", "vecs.npy", "--json").stdout)["hits"]
    command = ("search", "a red circle", "--index", "lancedb:db/photos", "--json")
    assert [hit["id"] for hit in json.loads(tcl(*command).stdout)["hits"]] == [hit["id"] for hit in exact]
    hits = json.loads(tcl(*command, "--rerank", "2").stdout)["hits"]
    assert [("match" in hit) for hit in hits] == [True, True, False]
    wrong = tcl("index", "vecs.npy", "--to", "lancedb:db/photos", "--out", "v.faiss")
    assert wrong.code == 2 and "--to takes none of" in wrong.stderr


def test_dedup(vectors: Path, tcl: Tcl, tiny_model: TCL) -> None:
    found = np.load("vecs.npy")
    found[2] = found[0]
    np.save("vecs.npy", found)
    done = tcl("dedup", "vecs.npy", "--threshold", "0.9999", "--html", "d.html")
    assert done.code == 0 and "1 near-duplicate in 1 group, among 3 inputs" in done.stderr
    [group] = [json.loads(line) for line in done.stdout.splitlines()]
    assert group["kept"] == {"row": 0, "id": "1.png"}
    assert [hit["id"] for hit in group["duplicates"]] == ["10.png"]
    page = Page(Path("d.html").read_text())
    assert len(page.sources) == 2 and "1.png" in page.text
    done = tcl("dedup", "vecs.npy", "-t", "0.9999", "--out", "groups.jsonl", "--json")
    assert json.loads(done.stdout) == {
        "rows": 3, "groups": 1, "duplicates": 1, "threshold": 0.9999, "out": "groups.jsonl"
    }  # fmt: skip
    assert json.loads(Path("groups.jsonl").read_text()) == group
    alone = json.loads(tcl("dedup", "vecs.npy", "-t", "0.9999", "--json").stdout)
    assert (alone["groups"], alone["duplicates"], alone["entries"], alone["out"]) == (1, 1, [group], None)
    none = json.loads(tcl("dedup", "texts.npy", "--threshold", "1", "--json").stdout)
    assert (none["groups"], none["entries"]) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vecs.npy", "--threshold", "0"], "above 0, up to 1"),
        (["vecs.npy", "--threshold", "1.5"], "above 0, up to 1"),
        (["vecs.npy", "--threshold", "nan"], "above 0, up to 1"),
        (["none.npy"], "none.npy: no such file"),
        (["images"], "not a folder of vectors"),
        (["vecs.npy", "--out", "vecs.npy"], "is the data itself"),
        (["vecs.npy", "--html", "no/d.html"], "no folder no"),
        (["vecs.npy", "--html", "images/1.png"], "must end in .html"),
        (["vecs.npy", "--out", "images/1.png"], "must end in .jsonl"),
        (["vecs.npy", "--html", "vecs.npy"], "is the data itself"),
        (["vecs.npy", "--out", "vecs.ids.jsonl"], "is the data itself"),
        (["vecs.npy", "--out", "d", "--html", "d"], "are both d"),
        (["vecs.npy", "--images", "images"], "--images is for --html"),
    ],
)
def test_dedup_bad_input(vectors: Path, tcl: Tcl, arguments: list[str], message: str) -> None:
    found = tcl("dedup", *arguments)
    assert (found.code, found.stdout) == (2, "") and message in found.stderr and "Traceback" not in found.stderr


def test_a_huge_group_on_the_page(vectors: Path, tcl: Tcl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcl.search.page.SHOWN", 2)
    np.save("vecs.npy", np.load("vecs.npy")[[0, 0, 0]])
    assert tcl("dedup", "vecs.npy", "--html", "d.html").code == 0
    page = Page(Path("d.html").read_text())
    assert len(page.sources) == 2 and "and 1 more" in page.text
