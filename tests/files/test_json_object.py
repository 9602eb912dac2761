"""Every complaint about JSON of ours is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tcl.files import json_object
from tcl.files.json_object import Malformed, parse_object, read_object

SHAPE = {
    "name": str,
    "count?": int,
    "share?": float,
    "done?": bool,
    "parts?": [{"file": str, "rows": int}],
    "files?": {"*": {"bytes": int}},
    "failed?": [[(int, str)]],
    "more?": dict,
    "list?": list,
}
WHOLE = {
    "name": "a",
    "count": 2**62,
    "share": 1,
    "done": True,
    "parts": [{"file": "a.npy", "rows": 0, "of": None}],
    "files": {"any name": {"bytes": 3}},
    "failed": [[3, "why"], []],
    "more": {"x": []},
    "list": [1, "a"],
    "unknown": [float("inf")],
}


def test_what_was_written_is_read() -> None:
    assert parse_object(json.dumps(WHOLE), SHAPE) == WHOLE
    assert parse_object('{"name": "", "count": null}', SHAPE) == {"name": "", "count": None}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": None}, "lacks name"),
        ({"name": 3}, "name is not a string"),
        ({"count": -1}, "count is not a whole number from 0"),
        ({"count": True}, "count is not a whole number from 0"),
        ({"count": 2.0}, "count is not a whole number from 0"),
        ({"count": 2**63}, "count is not a whole number from 0"),
        ({"share": float("nan")}, "share is not a number"),
        ({"share": float("-inf")}, "share is not a number"),
        ({"share": 10**400}, "share is not a number"),
        ({"share": False}, "share is not a number"),
        ({"done": 1}, "done is not true or false"),
        ({"parts": {}}, "parts is not a list"),
        ({"parts": [{"file": "a"}]}, "lacks parts[0].rows"),
        ({"parts": [{"file": "a", "rows": 1}, 3]}, "parts[1] is not an object"),
        ({"files": {"a": {"bytes": 1}, "b": {}}}, "lacks files.b.bytes"),
        ({"failed": [[3, None]]}, "failed[0][1] is not a whole number from 0"),
        ({"more": []}, "more is not an object"),
        ({"list": {}}, "list is not a list"),
    ],
)
def test_what_became_of_it_is_said(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(Malformed, match=f"^{problem.replace('[', '.').replace(']', '.')}$"):
        parse_object(json.dumps(WHOLE | change), SHAPE)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "malformed JSON"),
        (b"[1]", "holds no JSON object"),
        (b"{", "malformed JSON"),
        (b"\xff{}", "not UTF-8"),
        (b'{"name": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"name": "a", "count": ' + b"9" * 5000 + b"}", "malformed JSON"),
    ],
)
def test_what_is_no_object(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(Malformed, match=problem):
        read_object(tmp_path / "x.json", SHAPE)


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_object, "MAX_BYTES", 100)
    (tmp_path / "x.json").write_bytes(b" " * 88 + b'{"name": ""}')
    assert read_object(tmp_path / "x.json", SHAPE) == {"name": ""}
    (tmp_path / "x.json").write_bytes(b" " * 89 + b'{"name": ""}')
    with pytest.raises(Malformed, match="larger than"):
        read_object(tmp_path / "x.json", SHAPE)
