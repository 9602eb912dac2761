"""The published size: ViT-B/16 and BERT-base, with random weights; `pytest -m slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.onnx_export import build
from export.graphs.write import export_onnx
from export.verify.onnx import verify
from tcl.encoders.graphs import PRECISIONS
from tests.bundles import calibrated

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_every_graph_in_every_precision(tmp_path: Path) -> None:
    model = build()
    export_onnx(model, tmp_path, PRECISIONS, calibration=calibrated(model))
    checks = verify(tmp_path, model, PRECISIONS)
    assert [check.detail for check in checks if not check.passed] == []
    assert len([check for check in checks if check.subject == "values"]) == 6 * len(PRECISIONS)
