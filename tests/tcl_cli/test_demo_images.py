"""The demo leaves images to embed, named or not; other runs leave none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tcl_cli.conftest import Result


@pytest.mark.parametrize(
    ("words", "written"),
    [([], 1), (["demo"], 1), (["demo", "train.steps=5"], 1), (["small"], 0), (["demo", "data.train=[pairs.csv]"], 0)],
)
def test_who_leaves_images(
    words: list[str], written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tcl: Callable[..., Result]
) -> None:
    calls: list[None] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tcl_cli.train.pretrain.train", lambda *run, **options: True)
    monkeypatch.setattr("tcl_cli.train.pretrain.write_demo_images", lambda: calls.append(None))
    done = tcl("pretrain", *words)
    assert done.code == 0 and "tcl embed" in done.stderr, done.stderr
    assert len(calls) == written
