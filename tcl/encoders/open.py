"""Encoders: the same vectors from torch or from an exported bundle. Which one a command gets is decided here.

Neither torch nor ONNX Runtime is imported before an encoder of its kind is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tcl.data.processor import Processor
from tcl.embedding.run import Encoder
from tcl.encoders.fastest import choose
from tcl.encoders.graphs import PRECISIONS
from tcl.encoders.sessions import Place, open_session
from tcl.errors import MissingExtraError, UsageError
from tcl.machine.devices import choose_device
from tcl.weights.find import ModelSource, find_bundle, find_model
from tcl.weights.untrained import check_trained

if TYPE_CHECKING:
    from torch import Tensor

    from export.bundle import Bundle
    from tcl.models.tcl import TCL

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8", "fp8"]
BACKENDS = ("auto", "torch", "torch-compiled", "onnx", "onnx-trt", "trt")
DEVICES = ("auto", "cpu", "cuda")

PREFERRED: dict[str, tuple[str, ...]] = {
    "cpu": ("fp32", "int8", "fp16"),
    "cuda": ("fp16", "fp32"),
    "trt": ("fp16", "fp32"),
}
"""Precisions of a bundle in the order in which `auto` takes them; ONNX Runtime runs no others there."""

_BY = {"cpu": "on cpu", "cuda": "on cuda", "trt": "by its TensorRT provider"}


class TorchEncoder:
    """A `TCL` model as an `Encoder`.

    Args:
        model: in evaluation mode; it is moved to `device`.
        device: `cpu`, `cuda`, or None for where it is.
        precision: `auto` is fp16 on a GPU, where products are then float16 and the rest float32, and fp32 on a CPU.
        compiled: by torch's compiler, at the first call; that takes a minute, and again when another batch size comes.

    Raises:
        UsageError: torch does not compute in this precision there.
    """

    lanes = 1

    def __init__(self, model: TCL, device: str | None = None, precision: str = "auto", compiled: bool = False) -> None:
        self.model = model.to(device) if device else model
        self.processor: Processor = model.processor
        self.model_hash: str = model.model_hash
        self.embed_dim: int = model.config.embed_dim
        kind = model.device.type
        known = ("fp32", "fp16", "bf16") if kind == "cuda" else ("fp32",)
        if precision not in ("auto", *known):
            raise UsageError(
                f"--precision {precision}: torch computes in {' or '.join(known)} on {kind}",
                hint=f"for {precision}, `tcl export --precision {precision}` and give the bundle by --model",
            )
        self.precision = precision if precision != "auto" else "fp16" if kind == "cuda" else "fp32"
        self.backend = f"torch-compiled-{kind}" if compiled else f"torch-{kind}"
        self._image: Callable[..., Any] = self.model.encode_image
        self._text: Callable[..., Any] = self.model.encode_text
        if compiled:
            import torch

            self._image, self._text = torch.compile(self._image), torch.compile(self._text)

    def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E]."""
        import torch

        with torch.inference_mode(), self._autocast():
            return _array(self._image(self._moved(pixel_values)).image_feat)

    def encode_image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 pixels [B, 3, H, W] to vectors [B, E] and the last token states [B, T, W]."""
        import torch

        with torch.inference_mode(), self._autocast():
            image = self._image(self._moved(pixel_values))
            return _array(image.image_feat), _array(image.image_embeds)

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and mask [B, S] to L2-normalised vectors [B, E]."""
        import torch

        with torch.inference_mode(), self._autocast():
            return _array(self._text(self._moved(input_ids), self._moved(attention_mask)).text_feat)

    def _moved(self, values: NDArray[Any]) -> Tensor:
        import torch

        tensor = torch.as_tensor(values)
        if self.model.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.model.device, non_blocking=True)

    def _autocast(self) -> Any:
        import torch

        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.model.device.type, dtype=dtype)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor.float().cpu().numpy()
    return found


class OnnxEncoder:
    """An exported bundle as an `Encoder`, in ONNX Runtime.

    Args:
        folder: the bundle.
        precision: of the graphs; `auto` takes the first of `PREFERRED` that the bundle has.
        lanes: threads that may call it at once with profit. With more than one each call uses one core; with one, a
            call uses them all. A GPU takes one.
        device: where it computes; `trt` is a GPU by ONNX Runtime's TensorRT provider.
        say: told in one line that this provider builds an engine.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        CheckpointError: the bundle is damaged.
        UsageError: it lacks the precision, or ONNX Runtime does not run that there.
    """

    def __init__(
        self,
        folder: Path,
        precision: str = "auto",
        lanes: int = 1,
        device: Place = "cpu",
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        if find_spec("onnxruntime") is None:
            raise MissingExtraError("onnxruntime", "onnx" if device == "cpu" else "onnx-gpu")
        from export.bundle import read_bundle

        self.bundle: Bundle = read_bundle(folder)
        self.processor = Processor.load(folder)
        self.model_hash = self.bundle.model_hash
        self.embed_dim = self.bundle.embed_dim
        self.precision = _choose(self.bundle, precision, device)
        self.lanes = lanes if device == "cpu" else 1
        self.backend = "onnx-trt-cuda" if device == "trt" else f"onnx-{device}"
        self._device: Place = device
        self._say = say
        self._sessions: dict[str, Any] = {}
        self._opening = Lock()

    def session(self, graph: str) -> Any:
        """The session of a graph; opened when it is first asked for, and shared by all threads.

        Raises:
            UsageError: the bundle has no such graph, or the device cannot be used.
            CheckpointError: its file is damaged.
        """
        with self._opening:
            if graph not in self._sessions:
                self._sessions[graph] = self._open(graph)
            return self._sessions[graph]

    def _open(self, graph: str) -> Any:
        if self._device == "trt":
            from tcl.encoders.tensorrt.provider import open_provider_session

            return open_provider_session(self.bundle, graph, self.precision, self.processor.max_length, self._say)
        path = self.bundle.graph_file(graph, self.precision)
        return open_session(path, 1 if self.lanes > 1 else None, self._device)

    def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E]."""
        feed = {"pixel_values": pixel_values}
        vectors: NDArray[np.float32] = self.session("image_encoder").run(["image_embeds"], feed)[0]
        return vectors

    def encode_image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 pixels [B, 3, H, W] to vectors [B, E] and the last token states [B, T, W].

        Raises:
            UsageError: the bundle was exported without this graph.
        """
        outputs = ["image_embeds", "image_tokens"]
        vectors, tokens = self.session("image_tokens").run(outputs, {"pixel_values": pixel_values})
        return vectors, tokens

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and mask [B, S] to L2-normalised vectors [B, E]."""
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        vectors: NDArray[np.float32] = self.session("text_encoder").run(["text_embeds"], feed)[0]
        return vectors


def _choose(bundle: Bundle, precision: str, device: str) -> str:
    """The precision to run.

    Raises:
        UsageError: the bundle lacks it, or ONNX Runtime does not run it on the device.
    """
    known: Sequence[str] = PREFERRED[device]
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"--precision {precision}: no such precision", hint=f"one of auto, {', '.join(PRECISIONS)}")
    runs = next((name for name in known if name in bundle.precisions), None)
    leave = f"leave out --precision, which then is {runs}" if runs else ""
    if precision != "auto" and precision not in bundle.precisions:
        again = f"export the model again with --precision {precision if precision in known else known[0]}"
        raise UsageError(
            f"{bundle.folder}: has no {precision} graphs, only {', '.join(bundle.precisions)}", hint=leave or again
        )
    found = [name for name in known if name in bundle.precisions and precision in ("auto", name)]
    if not found:
        wanted = precision if precision != "auto" else ", ".join(bundle.precisions)
        raise UsageError(
            f"{bundle.folder}: ONNX Runtime does not run {wanted} graphs {_BY[device]}",
            hint=f"use --backend trt, or {leave or f'export the model again with --precision {known[0]}'}",
        )
    return found[0]


def open_encoder(
    model: str | None = None,
    backend: Literal["auto", "torch", "torch-compiled", "onnx", "onnx-trt", "trt"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision = "auto",
    lanes: int | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Encoder:
    """The encoder a command means.

    Args:
        model: a run, model folder, bundle, packed or not, `.pth` or hub id; None looks for the newest.
        backend: `auto` takes the fastest way that `tcl bench` has verified here. Without its result it runs a bundle in
            ONNX Runtime and any other model in torch; without torch, or where there is no run, it takes the newest
            bundle.
        device: where it computes; without a result of `tcl bench`, `auto` runs bundles on the CPU.
        precision: see `TorchEncoder` and `OnnxEncoder`.
        lanes: of an `OnnxEncoder`; None for one, which is right for single queries, as is 1.
        say: told in one line that a TensorRT engine is built, and why.

    Raises:
        UsageError: there is no such model, it has no trained projections, or the backend cannot run it.
        MissingExtraError: the backend is not installed.
    """
    for name, value, known in (("backend", backend, BACKENDS), ("device", device, DEVICES)):
        if value not in known:
            raise UsageError(f"{name} {value!r} is unknown", hint=f"one of {', '.join(known)}")
    named = model or os.environ.get("TCL_MODEL")
    model = unpacked_model(model)
    source = find_bundle(model) if backend in ("onnx", "onnx-trt", "trt") else _find(model, bundles=backend == "auto")
    if backend == "auto":
        fastest = choose(source, device, precision, single=lanes is None or lanes == 1)
        if fastest is not None:
            return _known_as(named, open_encoder(*fastest, lanes, say))  # type: ignore[arg-type]
    if source.kind == "bundle":
        if backend.startswith("torch"):
            raise UsageError(
                f"{source.location} is an exported bundle, which torch cannot run",
                hint=f"leave out --backend {backend}, or name the run it was exported from with --model",
            )
        if backend in ("onnx-trt", "trt") and device == "cpu":
            raise UsageError("TensorRT computes on a GPU alone", hint="leave out --device, or use --backend onnx")
        if backend == "trt":
            from tcl.encoders.tensorrt.encoder import TensorRTEncoder

            encoder: TensorRTEncoder | OnnxEncoder = TensorRTEncoder(source.path, precision, say=say)
        else:
            place: Place = "trt" if backend == "onnx-trt" else "cuda" if device == "cuda" else "cpu"
            encoder = OnnxEncoder(source.path, precision, lanes or 1, place, say)
        check_trained(encoder.bundle.untrained, source.location, "vectors")
        return _known_as(named, encoder)
    if find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    from tcl.weights.model_folder import load_model

    loaded = load_model(source.location)
    check_trained(loaded.untrained, source.location, "vectors")
    return TorchEncoder(loaded, choose_device(device), precision, backend == "torch-compiled")


def _known_as(named: str | None, encoder: Encoder) -> Encoder:
    """An encoder whose errors name the packed bundle that a user gave, rather than the folder in the cache."""
    bundle: Bundle | None = getattr(encoder, "bundle", None)
    if bundle is not None and named is not None and named.endswith(".tar"):
        encoder.bundle = replace(bundle, packed=Path(named))  # type: ignore[attr-defined]
    return encoder


def find_source(model: str | None = None) -> ModelSource:
    """The model a command means, unpacked; the newest bundle where there is no run, or no torch.

    Raises:
        UsageError: there is none.
    """
    return _find(unpacked_model(model), bundles=True)


def unpacked_model(model: str | None) -> str | None:
    """The model that a user names, or `$TCL_MODEL`; of a packed bundle, the folder that it is unpacked to."""
    model = model or os.environ.get("TCL_MODEL")
    if model is None or not model.endswith(".tar"):
        return model
    from tcl.encoders.bundle_tar import unpacked

    return str(unpacked(Path(model)))


def _find(model: str | None, bundles: bool) -> ModelSource:
    """The model, or the newest bundle where no model is named and none is there or torch is not."""
    try:
        source = find_model(model)
    except UsageError as no_model:
        bundle = _newest_bundle() if model is None and bundles else None
        if bundle is None:
            raise no_model
        return bundle
    if model is None and bundles and source.kind != "bundle" and find_spec("torch") is None:
        return _newest_bundle() or source
    return source


def _newest_bundle() -> ModelSource | None:
    try:
        return find_bundle()
    except UsageError:
        return None
