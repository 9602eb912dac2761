"""Several processes evaluate what one does, bit for bit, and fail together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tcl.data.images.decode import ImageError
from tcl.data.labels.questions import Question
from tcl.data.labels.regions import Region
from tcl.data.labels.statements import Statement
from tcl.distributed.share import ALONE, Share
from tcl.errors import DataError, TclError
from tcl.evaluation.classification import Prediction, evaluate_classification
from tcl.evaluation.grounding import evaluate_grounding
from tcl.evaluation.statements import evaluate_statements
from tcl.evaluation.vqa import evaluate_vqa
from tcl.machine.signals import Stopped
from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.tcl import TCL
from tests.tasks.shares import in_processes

SIZE = 7  # rows, in batches of 2 and 1


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """One of them cannot be read."""
    draw = np.random.default_rng(0)
    paths = [tmp_path / ("even" if row % 2 == 0 else "odd") / f"{row}.png" for row in range(SIZE)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (24, 30, 3), dtype=np.uint8)).save(path)
    paths[3].write_bytes(b"no image")
    return [str(path) for path in paths]


def with_head(model: TCL, **head: Any) -> Any:
    return attach_head(copy.deepcopy(model), HeadConfig.model_validate(head)).eval()


def evaluation(task: str, model: TCL, images: list[str], done: list[int]) -> Callable[[Share], Any]:
    settings: Any = {"batch_size": 2, "workers": 1, "progress": done.append}
    if task == "vqa":
        answering = with_head(model, task="vqa", labels=["red", "blue", "two"], decoder_layers=2)
        questions = [
            Question(f"line {n}", n, image, f"what is {n}?", ["red"], {"red": 1.0}, "")
            for n, image in enumerate(images)
        ]
        return lambda share: evaluate_vqa(answering, questions, share=share, **settings)
    if task == "nlvr2":
        comparing = with_head(model, task="nlvr2", labels=["False", "True"])
        pairs = zip(images, images[::-1], strict=True)
        rows = [Statement(f"line {n}", of_row, f"{n} dogs", "True") for n, of_row in enumerate(pairs)]
        return lambda share: evaluate_statements(comparing, rows, share=share, **settings)
    if task == "grounding":
        regions = [
            Region(f"line {n}", image, "a dog", None, (4.0, 4.0, 16.0, 16.0), [], "") for n, image in enumerate(images)
        ]
        return lambda share: evaluate_grounding(model, regions, share=share, **settings)

    def classify(share: Share) -> Any:
        said: list[Prediction] = []
        folder = Path(images[0]).parent.parent
        return evaluate_classification(model, folder, share=share, predicted=said.append, **settings), said

    return classify


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "grounding", "classification"])
def test_shares_are_the_whole(task: str, tiny_model: TCL, images: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    evaluate = evaluation(task, tiny_model, images, done)
    modes: list[bool] = []
    encode = TCL.encode_image

    def noting(self: TCL, pixel_values: Any) -> Any:
        modes.append(torch.is_grad_enabled())
        return encode(self, pixel_values)

    monkeypatch.setattr(TCL, "encode_image", noting)
    expected = evaluate(ALONE)
    assert modes and not any(modes)  # nothing is kept for gradients
    assert sum(done) in (SIZE, SIZE - 1, SIZE - 2)  # of two images, each unreadable one takes a row with it
    assert in_processes(3, evaluate) == [expected] * 3
    assert in_processes(5, evaluate) == [expected] * 5


def test_batches_are_dealt_out_whole() -> None:
    shares = [Share(rank, 3).rows(7, 2) for rank in range(3)]
    assert shares == [[0, 1, 6], [2, 3], [4, 5]]
    assert Share(1, 3).rows(7, 2, rank=2) == [4, 5] and ALONE.rows(3, 2) == [0, 1, 2]
    assert [Share(rank, 9).rows(7, 2) for rank in (3, 8)] == [[6], []]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DataError("rows.jsonl line 3: no box", hint="give one"), DataError, "rows.jsonl line 3: no box"),
        (ImageError("a.png", "truncated"), DataError, "cannot read image a.png: truncated"),
        (MemoryError("no memory\nleft"), TclError, "process 1: MemoryError: no memory left"),
    ],
)
def test_what_fails_in_one_fails_in_all(error: Exception, kind: type[TclError], message: str) -> None:
    def work(share: Share) -> None:
        with share.agree():
            if share.rank in (1, 2):
                raise error if share.rank == 1 else ValueError("later")

    failures = in_processes(3, work)
    assert [(type(failure), str(failure)) for failure in failures] == [(kind, message)] * 3
    assert {failure.hint for failure in failures} == {getattr(error, "hint", None)}
    with pytest.raises(type(error)), ALONE.agree():
        raise error


def test_progress_is_guessed_from_ones_own() -> None:
    done: list[int] = []
    advance = Share(0, 3).progress(done.append, 10)
    for _ in range(3):
        advance(2)
    assert done == [6, 4, 0]


def test_who_is_told_to_end_ends_all() -> None:
    def end(share: Share) -> str:
        try:
            with share.agree():
                if share.rank == 1:
                    raise Stopped
        except Stopped:
            return "stopped"
        return "went on"

    assert in_processes(3, end) == ["stopped"] * 3
