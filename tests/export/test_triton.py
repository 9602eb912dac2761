"""The model repository for Triton: read by protobuf's own parser, against the fields of Triton's model_config.proto."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from export.graphs.build import sizes_of
from export.triton import config, write_repository
from tcl.encoders.bundle import Bundle
from tcl.encoders.graphs import graphs
from tcl.errors import CheckpointError, UsageError
from tcl.models.heads import Task
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL

NAMES = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "STRING", "BF16"),
)
DATA_TYPES = {name: number for number, name in enumerate(NAMES)}
TO_ONNX = {
    "UINT8": onnx.TensorProto.UINT8,
    "INT64": onnx.TensorProto.INT64,
    "FP16": onnx.TensorProto.FLOAT16,
    "FP32": onnx.TensorProto.FLOAT,
}
STRING, INT32, INT64, UINT64, MESSAGE, ENUM = 9, 5, 3, 4, 11, 14  # protobuf's types
ONE, MANY = 1, 3
# Message -> field -> (type, how often, name of its type). What Triton has beyond these is not used.
SCHEMA: dict[str, dict[str, tuple[int, int, str]]] = {
    "ModelInput": {"name": (STRING, ONE, ""), "data_type": (ENUM, ONE, "DataType"), "dims": (INT64, MANY, "")},
    "ModelOutput": {"name": (STRING, ONE, ""), "data_type": (ENUM, ONE, "DataType"), "dims": (INT64, MANY, "")},
    "ModelDynamicBatching": {
        "preferred_batch_size": (INT32, MANY, ""),
        "max_queue_delay_microseconds": (UINT64, ONE, ""),
    },
    "ModelParameter": {"string_value": (STRING, ONE, "")},
    "ModelConfig": {
        "name": (STRING, ONE, ""),
        "platform": (STRING, ONE, ""),
        "backend": (STRING, ONE, ""),
        "max_batch_size": (INT32, ONE, ""),
        "input": (MESSAGE, MANY, "ModelInput"),
        "output": (MESSAGE, MANY, "ModelOutput"),
        "dynamic_batching": (MESSAGE, ONE, "ModelDynamicBatching"),
        "parameters": (MESSAGE, MANY, "ModelConfig.ParametersEntry"),
    },
}


def _schema() -> Any:
    """The message class of a `config.pbtxt`."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    enum = file.enum_type.add(name="DataType")
    for name, number in DATA_TYPES.items():
        enum.value.add(name=f"TYPE_{name}", number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, (field, (type_, label, type_name)) in enumerate(fields.items(), 1):
            added = message.field.add(name=field, number=number, type=type_, label=label)
            if type_name:
                added.type_name = f".inference.{type_name}"
    entry = file.message_type[-1].nested_type.add(name="ParametersEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=STRING, label=ONE)
    entry.field.add(name="value", number=2, type=MESSAGE, label=ONE, type_name=".inference.ModelParameter")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


MODEL_CONFIG = _schema()


def parse(text: str) -> Any:
    """A `config.pbtxt`; a field or type that the schema does not know is an exception."""
    return text_format.Parse(text, MODEL_CONFIG())


def test_the_schema_refuses_what_it_does_not_know() -> None:
    for wrong in ('nome: "x"', "max_batch_size: many", "input { data_type: UINT8 }", "dynamic_batching: 3"):
        with pytest.raises(text_format.ParseError):
            parse(wrong)


def _axes(found: Any) -> list[int]:
    return [axis.dim_value if axis.HasField("dim_value") else -1 for axis in found.type.tensor_type.shape.dim]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_repository_describes_its_graphs(every_precision: Bundle, tmp_path: Path, precision: str) -> None:
    write_repository(every_precision.folder, tmp_path / "models", precision, max_batch=16)
    folders = sorted((tmp_path / "models").iterdir())
    assert [folder.name for folder in folders] == sorted(every_precision.graphs)
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt"]
        written = parse((folder / "config.pbtxt").read_text())
        assert (written.name, written.backend) == (folder.name, "onnxruntime")
        assert written.parameters["tcl.model_hash"].string_value == every_precision.model_hash
        batched = written.max_batch_size > 0
        assert written.HasField("dynamic_batching") is batched is (folder.name != "matcher")
        assert written.max_batch_size in (0, 16)
        graph = onnx.load(folder / "1" / "model.onnx").graph
        for described, real in ((written.input, graph.input), (written.output, graph.output)):
            assert [port.name for port in described] == [port.name for port in real]
            for port, found in zip(described, real, strict=True):
                axes = _axes(found)
                assert list(port.dims) == (axes[1:] if batched else axes)
                assert not batched or axes[0] == -1, "Triton puts requests together along the first axis"
                type_ = next(name for name, number in DATA_TYPES.items() if number == port.data_type)
                assert TO_ONNX[type_] == found.type.tensor_type.elem_type


def test_the_graph_runs_where_it_was_put(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle.folder, tmp_path / "models")
    path = tmp_path / "models" / "image_encoder" / "1" / "model.onnx"
    assert os.path.samefile(path, bundle.folder / "image_encoder.onnx"), "no second copy of the weights"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"pixel_values": np.zeros((2, 3, 32, 32), np.uint8)})[0].shape == (2, 16)


def test_graphs_of_tasks(fine_tuned: Callable[[Task], TaskModel], tiny_model: TCL) -> None:
    batches = {}
    for task in ("entailment", "nlvr2", "vqa"):
        graph = graphs(sizes_of(fine_tuned(task)))[-1]  # type: ignore[arg-type]
        written = parse(config(graph, "fp32", "hash"))
        batches[written.name] = written.max_batch_size
        assert list(written.input[0].dims)[-3:] == [3, 32, 32]
    assert batches == {"entailment": 64, "nlvr2": 64, "vqa": 0}, "a list of answers belongs to no single request"


def test_bad_input(bundle: Bundle, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for target, arguments, message in [
        ("taken", {}, "taken: exists"),
        ("new", {"precision": "bf16"}, "ONNX Runtime does not run it"),
        ("new", {"precision": "fp16"}, "has no fp16 graphs"),
        ("new", {"max_batch": 0}, "at least 1"),
    ]:
        with pytest.raises(UsageError, match=message):
            write_repository(bundle.folder, tmp_path / target, **arguments)  # type: ignore[arg-type]
    (copied / "matcher.onnx").write_bytes(b"edited")
    with pytest.raises(CheckpointError, match="not the file that was exported"):
        write_repository(copied, tmp_path / "new")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new*"))
    manifest = json.loads((copied / "bundle.json").read_text())
    (copied / "bundle.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        write_repository(copied, tmp_path / "new")
