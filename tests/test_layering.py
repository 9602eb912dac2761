"""`tcl_cli` stands on `export`, `export` on `tcl`; what a deployer runs loads without torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
FORBIDDEN = {
    "tcl": {"export", "tcl_cli", "typer", "rich", "onnx", "onnxruntime"},
    "export": {"tcl_cli", "typer", "rich"},
}
ALLOWED = {"float16_products.py": {"onnxruntime"}}  # as arithmetic, not to run a model
HEAVY = ["torch", "torchvision", "timm", "transformers", "onnx", "onnxruntime"]
TORCH_FREE = [
    "tcl",
    "tcl.machine.memory",
    "export.bench.bench",
    "export.bench.chart",
    "tcl.encoders.fastest",
    "export.bench.ways",
    "export.bench.worker",
    "export.bench.worker",
    "export.triton",
    "tcl.encoders.tensorrt.build",
    "tcl.encoders.tensorrt.cuda",
    "tcl.encoders.tensorrt.engine",
    "tcl.encoders.tensorrt.engines",
    "tcl.encoders.tensorrt.session",
    "export.verify.engines",
    "export.verify.comparison",
    "tcl.encoders.tensorrt.profiles",
    "export.graphs.fp8",
    "export.verify.references",
    "tcl.encoders.tensorrt.provider",
    "export.verify.references",
    "tcl.encoders.tensorrt.profiles",
    "tcl.encoders.tensorrt.build",
    "tcl.encoders.tensorrt.package",
    "tcl.encoders.tensorrt.encoder",
    "tcl.data.scenes.labels",
    "tcl.vectors.products",
    "tcl.vectors.products",
    "tcl.vectors.parts",
    "tcl.vectors.reader",
    "tcl.search.faiss_build",
    "tcl.search.faiss",
    "tcl.search.lancedb",
    "tcl.search.open",
    "tcl.search.dedup",
    "tcl.search.page",
    "tcl.encoders.embedder",
    "tcl.encoders.sentence_transformers",
    "export.graphs.build",
    "export.verify.cases",
    "export.verify.checks",
    "tcl.encoders.open",
    "export.graphs.network",
    "tcl.encoders.onnx",
    "tcl.encoders.bundle_tar",
    "export.graphs.int8",
    "tcl.machine.quiet",
    "export.bundle",
    "export.verify.rounding",
    "tcl.encoders.sessions",
    "export.graphs.text",
    "export.graphs.vision",
    "export.graphs.vision",
    "tcl.machine.devices",
    "tcl.embedding.job",
    "tcl.embedding.folder",
    "tcl.embedding.job",
    "tcl.embedding.journal",
    "tcl.embedding.parts",
    "tcl.embedding.parts",
    "tcl.embedding.pipeline",
    "tcl.embedding.plan",
    "tcl.embedding.ray",
    "tcl.embedding.pipeline",
    "tcl.embedding.journal",
    "tcl.embedding.workers",
    "tcl.vectors.dtypes",
    "tcl.distributed.share",
    "tcl.data.strings",
    "tcl.data.inputs.inputs",
    "tcl.data.sources.folders",
    "tcl.data.sources.columns",
    "tcl.data.inputs.ids",
    "tcl.data.sources.shards",
    "tcl.data.inputs.listing",
    "tcl.data.sources.records",
    "tcl.data.storage.parquet_cells",
    "tcl.weights.files",
    "tcl.data.tables.csv_lines",
    "tcl.files.hub",
    "tcl.config.files",
    "tcl.training.preflight",
    "tcl.distributed.launch",
    "tcl.machine.memory",
    "tcl.training.preflight",
    "tcl.files.locks",
    "tcl.training.upload",
    "tcl.files.atomic",
    "tcl.config.recipe",
    "tcl.config.files",
    "tcl.data.tables.formats",
    "tcl.embedding.run",
    "tcl.errors",
    "tcl.data.inputs.listing",
    "tcl.evaluation.metrics",
    "tcl.data.processor",
    "tcl.search.rerank",
    "tcl.weights.find",
    "tcl.training.runlog",
    "tcl.search.exact",
    "tcl.files.names",
    "tcl.vectors.files",
    "tcl.vectors.writer",
    "tcl.data.tokenizer",
    "tcl.evaluation.metrics",
    "tcl.data.boxes",
    "tcl.data.tables.coco",
    "tcl.data.labels.regions",
    "tcl.explain.figure",
    "tcl.evaluation.published",
    "tcl.data.labels.statements",
    "tcl.files.cache",
    "tcl.data.check.report",
    "tcl.data.arrow_file",
    "tcl.data.tables.json_stream",
    "tcl.files.remote",
    "tcl.data.sources.records",
    "tcl.data.sources.find",
    "tcl.data.storage.open",
    "tcl.data.sources.shards",
    "tcl.data.storage.tar",
    "tcl.data.tables.json_stream",
    "tcl.data.labels.questions",
    "tcl.models.heads",
    "tcl.weights.untrained",
    "tcl.weights.keyreport",
    "tcl.weights.layouts",
    "tcl.data.pack.pack",
    "tcl.machine.processes",
    "tcl.data.images.decode",
    "tcl.files.names",
    "tcl.data.images.decode",
    "tcl.data.pairs.table",
    "tcl.data.scenes.layout",
    "tcl.data.scenes.scenes",
    "export.bundle",
    "tcl.encoders.graphs",
    "export.graphs.write",
    "tcl.encoders.open",
    "export.verify.onnx",
    "tcl_cli.main",
]


def _imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_points_upwards(package: str) -> None:
    files = list((REPOSITORY / package).rglob("*.py"))
    assert files
    forbidden = {path: FORBIDDEN[package] - ALLOWED.get(path.name, set()) for path in files}
    wrong = {str(path): names for path in files if (names := _imported(path) & forbidden[path])}
    assert not wrong


def test_what_a_deployer_runs_loads_without_torch() -> None:
    script = (
        "import importlib, sys\n"
        f"for name in {HEAVY}: sys.modules[name] = None\n"
        f"for name in {TORCH_FREE}: importlib.import_module(name)"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
