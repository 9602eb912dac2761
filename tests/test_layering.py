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
    "tcl.allocator",
    "export.bench",
    "export.bench_chart",
    "export.bench_record",
    "export.bench_ways",
    "export.bench_worker",
    "export.flops",
    "export.triton",
    "export.build_progress",
    "export.cuda",
    "export.engine",
    "export.engine_build",
    "export.engine_session",
    "export.engine_verify",
    "export.comparison",
    "export.fitting",
    "export.float8",
    "export.onnx_reference",
    "export.tensorrt_provider",
    "export.torch_reference",
    "export.profiles",
    "export.tensorrt",
    "export.tensorrt_package",
    "export.tensorrt_runtime",
    "tcl.data.scene_labels",
    "tcl.float16_products",
    "tcl.stored_vectors",
    "tcl.vector_parts",
    "tcl.vector_file",
    "tcl.faiss_build",
    "tcl.faiss_index",
    "tcl.lancedb_table",
    "tcl.collection",
    "tcl.dedup",
    "tcl.result_page",
    "tcl.embedder",
    "tcl.sentence_encoder",
    "export.builders",
    "export.cases",
    "export.checks",
    "export.matcher",
    "export.network",
    "export.onnx_matcher",
    "export.pack",
    "export.quantise",
    "export.quiet",
    "export.readme",
    "export.rounding",
    "export.sessions",
    "export.text",
    "export.traced",
    "export.vision",
    "tcl.embedding.devices",
    "tcl.embedding.finish",
    "tcl.embedding.folder",
    "tcl.embedding.job",
    "tcl.embedding.journal",
    "tcl.embedding.output",
    "tcl.embedding.parts",
    "tcl.embedding.pipeline",
    "tcl.embedding.plan",
    "tcl.embedding.ray_engine",
    "tcl.embedding.reading",
    "tcl.embedding.store",
    "tcl.embedding.workers",
    "tcl.quantise",
    "tcl.tasks.share",
    "tcl.listing.strings",
    "tcl.listing.lists",
    "tcl.listing.files",
    "tcl.listing.columns",
    "tcl.listing.ids",
    "tcl.listing.shards",
    "tcl.listing.remote_images",
    "tcl.listing.tables",
    "tcl.data.table_cells",
    "tcl.damage",
    "tcl.data.csv_lines",
    "tcl.hub",
    "tcl.strict_yaml",
    "tcl.best",
    "tcl.launch",
    "tcl.memory",
    "tcl.preflight",
    "tcl.run_lock",
    "tcl.upload",
    "tcl.atomic",
    "tcl.config",
    "tcl.recipe_files",
    "tcl.data.formats",
    "tcl.embed",
    "tcl.errors",
    "tcl.inputs",
    "tcl.metrics",
    "tcl.processor",
    "tcl.rerank",
    "tcl.resolve",
    "tcl.runlog",
    "tcl.search",
    "tcl.spelling",
    "tcl.vectors",
    "tcl.vector_writer",
    "tcl.data.captions",
    "tcl.answers",
    "tcl.boxes",
    "tcl.data.caption_objects",
    "tcl.data.regions",
    "tcl.heatmap_figure",
    "tcl.protocols",
    "tcl.data.annotations",
    "tcl.data.cache",
    "tcl.data.check",
    "tcl.data.index_file",
    "tcl.data.json_list",
    "tcl.data.remote",
    "tcl.data.rows",
    "tcl.data.sources",
    "tcl.data.storage",
    "tcl.data.tar",
    "tcl.data.tar_members",
    "tcl.data.json_object",
    "tcl.data.questions",
    "tcl.models.heads",
    "tcl.models.untrained",
    "tcl.keyreport",
    "tcl.layouts",
    "tcl.data.pack",
    "tcl.data.parallel",
    "tcl.data.images",
    "tcl.data.natural_order",
    "tcl.data.rgb",
    "tcl.data.index",
    "tcl.data.scene_layout",
    "tcl.data.scenes",
    "export.bundle",
    "export.formats",
    "export.onnx",
    "export.runtime",
    "export.verify",
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
