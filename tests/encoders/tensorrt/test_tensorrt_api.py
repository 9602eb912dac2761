"""What the code asks of TensorRT exists in every version that it is for, as recorded from the packages themselves."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
FILES = ("build.py", "package.py", "session.py")
RECORDED: dict[str, Any] = json.loads((ROOT / "tests/recorded/tensorrt_api.json").read_text(encoding="utf-8"))

CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
"""The code names things of TensorRT so."""


def _trees() -> Iterator[ast.AST]:
    for name in FILES:
        tree = ast.parse((ROOT / "tcl/encoders/tensorrt" / name).read_text(encoding="utf-8"))
        for handler in (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)):
            handler.body.clear()  # there `error` is an exception
        yield tree


def _uses() -> Iterator[tuple[str, str, str, int | None]]:
    """(class, member, how it is used, number of arguments) of everything that the code touches."""
    for tree in _trees():
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            if (owner := CLASSES.get(node.value.id)) is None:
                continue
            parent = parents[node]
            if isinstance(parent, ast.Call) and parent.func is node:
                assert not parent.keywords, "arguments are passed by place: their names differ between versions"
                yield owner, node.attr, "call", len(parent.args)
            else:
                yield owner, node.attr, "write" if isinstance(node.ctx, ast.Store) else "read", None


def _dotted() -> Iterator[list[str]]:
    """Every `trt.A.B` of the code, as `[A, B]`."""
    for tree in _trees():
        inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            parts: list[str] = []
            top: ast.AST = node
            while isinstance(top, ast.Attribute):
                parts.insert(0, top.attr)
                top = top.value
            if parts and node not in inner and isinstance(top, ast.Name) and top.id == "trt":
                yield parts


def test_the_search_sees_the_code() -> None:
    used = {(owner, member) for owner, member, _, _ in _uses()}
    assert {
        ("Builder", "build_serialized_network"),
        ("OnnxParser", "parse_from_file"),
        ("ParserError", "node_operator"),
        ("IBuilderConfig", "hardware_compatibility_level"),
        ("ITimingCache", "serialize"),
        ("Runtime", "engine_host_code_allowed"),
        ("ICudaEngine", "create_execution_context"),
        ("IExecutionContext", "execute_async_v3"),
    } <= used
    assert ["BuilderFlag", "VERSION_COMPATIBLE"] in list(_dotted())


@pytest.mark.parametrize("version", RECORDED)
def test_members(version: str) -> None:
    for owner, member, how, count in _uses():
        known = RECORDED[version]["classes"][owner]
        if how == "call":
            assert member in known["methods"], f"{owner}.{member}()"
            assert any(count <= len(arguments) for arguments in known["methods"][member]), f"{owner}.{member}: {count}"
        else:
            names = known["settable"] if how == "write" else known["settable"] + known["readable"]
            assert member in names, f"{owner}.{member} ({how})"


@pytest.mark.parametrize("version", RECORDED)
def test_names_of_the_module(version: str) -> None:
    recorded = RECORDED[version]
    for first, *rest in _dotted():
        assert first in recorded["classes"] or first in recorded["enums"] or first == "__version__", first
        if first in recorded["enums"] and rest:
            assert rest[0] in recorded["enums"][first], f"{first}.{rest[0]}"
        elif rest:
            methods = recorded["classes"][first]["methods"]
            assert rest[0] in methods, f"{first}.{rest[0]}"


@pytest.mark.parametrize("version", RECORDED)
def test_monitor_and_logger_define_what_tensorrt_calls(version: str) -> None:
    classes = RECORDED[version]["classes"]
    defined = {node.name for tree in _trees() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for owner in ("IProgressMonitor", "ILogger"):
        wanted = set(classes[owner]["methods"]) - {"__init__", "Severity"}
        assert wanted and wanted <= defined


def test_the_installed_package_has_what_was_recorded() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    for owner, member, _, _ in _uses():
        assert hasattr(getattr(trt, owner), member), f"{owner}.{member}"
    for parts in _dotted():
        found: Any = trt
        for part in parts:
            found = getattr(found, part)


def test_the_cuda_calls_exist() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime")
    tree = ast.parse((ROOT / "tcl/encoders/tensorrt/cuda.py").read_text(encoding="utf-8"))
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cudart"
    }
    assert {"cudaMalloc", "cudaMallocHost", "cudaMemcpyAsync", "cudaError_t", "cudaMemcpyKind"} <= names
    assert [name for name in names if not hasattr(cudart, name)] == []
    for kind in ("cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"):
        assert hasattr(cudart.cudaMemcpyKind, kind)
    assert hasattr(cudart.cudaError_t, "cudaErrorMemoryAllocation")
