"""A graph that is being put together, node by node, from the modules of a model.

Weights keep the names that they have in the model, so they can be looked up in a checkpoint; those of linear layers are
stored transposed, [in, out].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tcl.encoders.graphs import ELEMENT_TYPES, OPSET, Graph
from tcl.errors import TclError

if TYPE_CHECKING:
    from torch import Tensor, nn

IR_VERSION = 9  # the first with this operator set
MASKED = -1e4  # score of what must not be attended to: exactly zero after the softmax, and finite in half precision
UNSUPPORTED = "leave this layer out of the model, or use it with torch"


class Network:
    """Nodes and weights of one graph.

    Args:
        model: knows the names of the modules.
        dtype: type that weights and states have: `float32`, `float16` or `bfloat16`.
    """

    def __init__(self, model: nn.Module, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self.names = {module: name for name, module in model.named_modules()}

    def op(self, kind: str, *inputs: str, name: str = "", result: str = "", **attributes: Any) -> str:
        """Add a node; its output is called `result`, or by a number."""
        return self.ops(kind, *inputs, count=1, name=name, result=result, **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, count: int, name: str = "", result: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with `count` outputs."""
        from onnx import helper

        number = len(self.nodes)
        if any(node.name == name for node in self.nodes):  # a module that is used twice
            name = f"{name} {number}"
        outputs = [result or f"{kind}_{number}" + (f"_{place}" if count > 1 else "") for place in range(count)]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name or f"{kind}_{number}", **attributes))
        return outputs

    @contextmanager
    def float32(self) -> Iterator[None]:
        """What is added inside computes in float32."""
        before, self.dtype = self.dtype, "float32"
        try:
            yield
        finally:
            self.dtype = before

    def cast(self, x: str, dtype: str, source: str | None = None, result: str = "") -> str:
        """`x` in another type; the same `x` where it has that type already.

        Args:
            source: type of `x`; None for that of the network.
            result: name of the output, which is then made in any case.
        """
        if (source or self.dtype) == dtype:
            return self.op("Identity", x, result=result) if result else x
        return self.op("Cast", x, to=ELEMENT_TYPES[dtype], result=result)

    def integers(self, *values: int) -> str:
        """A constant int64 [n]."""
        return self._constant("integers", np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant of the network's type, without axes."""
        import torch

        return self.weight(f"number {value} {self.dtype}", torch.tensor(value))

    def shape(self, *sizes: int) -> str:
        """A constant for `Reshape`: 0 keeps the axis, -1 takes what is left."""
        return self._constant("shape", np.array(sizes, np.int64))

    def _constant(self, kind: str, values: np.ndarray[Any, Any]) -> str:
        from onnx import numpy_helper

        name = f"{kind} {' '.join(map(str, values.flatten().tolist()))}"
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(values, name)
        return name

    def weight(self, name: str, tensor: Tensor) -> str:
        """A weight in the network's type, stored once; booleans and integers stay what they are."""
        import torch
        from onnx import TensorProto

        dtype = self.dtype if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
        if name in self.weights and self.weights[name].data_type != ELEMENT_TYPES[dtype]:
            name = f"{name} {dtype}"
        if name not in self.weights:
            stored = tensor.detach().cpu().to(getattr(torch, dtype)).contiguous()
            content = stored.flatten().view(torch.uint8) if stored.numel() else torch.empty(0, dtype=torch.uint8)
            self.weights[name] = TensorProto(
                name=name, data_type=ELEMENT_TYPES[dtype], dims=stored.shape, raw_data=content.numpy().tobytes()
            )
        return name

    def linear(self, module: nn.Module, x: str) -> str:
        """`nn.Linear`.

        Raises:
            TclError: it is another kind of layer, such as one with an adapter that is not merged.
        """
        from torch import nn

        name = self.names[module]
        if type(module) is not nn.Linear:
            raise TclError(f"{name}: a layer of type {type(module).__name__} cannot be exported", hint=UNSUPPORTED)
        x = self.op("MatMul", x, self.weight(f"{name}.weight", module.weight.T), name=name)
        return x if module.bias is None else self.op("Add", x, self.weight(f"{name}.bias", module.bias))

    def norm(self, module: nn.Module, x: str) -> str:
        """`nn.LayerNorm`, whose statistics are float32 in every type; nothing for `nn.Identity`.

        Raises:
            TclError: it is another kind of layer.
        """
        from torch import nn

        if isinstance(module, nn.Identity):
            return x
        name = self.names[module]
        if not isinstance(module, nn.LayerNorm) or module.bias is None:
            raise TclError(f"{name}: a layer of type {type(module).__name__} cannot be exported", hint=UNSUPPORTED)
        weights = [self.weight(f"{name}.{part}", getattr(module, part)) for part in ("weight", "bias")]
        return self.op("LayerNormalization", x, *weights, axis=-1, epsilon=module.eps)

    def split_heads(self, x: str, heads: int, batch_axes: int = 1) -> str:
        """States [..., S, D] to [..., H, S, Dh]."""
        x = self.op("Reshape", x, self.shape(*[0] * (batch_axes + 1), heads, -1))
        return self.op("Transpose", x, perm=_swapped(batch_axes))

    def attend(self, query: str, key: str, value: str, width: int, mask: str | None = None, batch_axes: int = 1) -> str:
        """Softmax attention of heads [..., H, S, Dh] to [..., H, N, Dh], merged to [..., S, D].

        Written out rather than left to one operator: runtimes fuse this in half precision, and broadcast one image over
        all the texts it is compared with.

        Args:
            width: Dh.
            mask: bool, True = attend; broadcast with [..., H, S, N].
            batch_axes: axes ahead of the heads of the query; key and value may have fewer.
        """
        scores = self.op("MatMul", self.op("Mul", query, self.number(width**-0.5)), key)
        if mask is not None:
            scores = self.op("Where", mask, scores, self.number(MASKED))
        attended = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        merged = self.op("Transpose", attended, perm=_swapped(batch_axes))
        return self.op("Reshape", merged, self.shape(*[0] * (batch_axes + 1), -1))

    def first(self, x: str) -> str:
        """The first token [..., 1, D] of states [..., S, D]."""
        return self.op("Slice", x, self.integers(0), self.integers(1), self.integers(-2))

    def pick(self, x: str, place: int, axis: int) -> str:
        """`x` at a place of an axis, which goes away."""
        return self.op("Gather", x, self._constant("place", np.array(place, np.int64)), axis=axis)

    def normalise(self, x: str, result: str = "") -> str:
        """`F.normalize(x, dim=-1)`."""
        length = self.op("ReduceL2", x, self.integers(-1), keepdims=1)
        return self.op("Div", x, self.op("Max", length, self.number(1e-12)), result=result)

    def model(self, graph: Graph, precision: str, metadata: Mapping[str, str]) -> Any:
        """The graph as an ONNX model."""
        from onnx import helper

        inputs, outputs = (
            [helper.make_tensor_value_info(p.name, ELEMENT_TYPES[graph.dtype(p, precision)], p.axes) for p in ports]
            for ports in (graph.inputs, graph.outputs)
        )
        made = helper.make_graph(self.nodes, graph.name, inputs, outputs, list(self.weights.values()))
        model = helper.make_model(made, producer_name="tcl", opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR_VERSION
        helper.set_model_props(model, dict(metadata))
        return model


def _swapped(batch_axes: int) -> list[int]:
    """The permutation that swaps the two axes behind the batch axes, and keeps the last."""
    return [*range(batch_axes), batch_axes + 1, batch_axes, batch_axes + 2]
