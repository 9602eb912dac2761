"""Encoders: the same vectors from torch or from an exported bundle. Which one a command gets is decided here.

Neither torch nor ONNX Runtime is imported before an encoder of its kind is made.
"""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tcl.devices import choose_device
from tcl.embed import Encoder
from tcl.errors import CheckpointError, MissingExtraError, TclError, UsageError
from tcl.processor import Processor
from tcl.resolve import ModelSource, find_bundle, find_model

if TYPE_CHECKING:
    from export.bundle import Bundle
    from tcl.models.tcl import TCL


class TorchEncoder:
    """A `TCL` model as an `Encoder`.

    Args:
        model: in evaluation mode; it is moved to `device`.
        device: `cpu`, `cuda`, or None for where it is.
    """

    precision = "fp32"

    def __init__(self, model: TCL, device: str | None = None) -> None:
        self.model = model.to(device) if device else model
        self.processor: Processor = model.processor
        self.model_hash: str = model.model_hash
        self.embed_dim: int = model.config.embed_dim
        self.backend = f"torch-{model.device.type}"

    def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E]."""
        import torch

        with torch.inference_mode():
            vectors: NDArray[np.float32] = self.model.encode_image(pixel_values).image_feat.cpu().numpy()
        return vectors

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and mask [B, S] to L2-normalised vectors [B, E]."""
        import torch

        with torch.inference_mode():
            vectors: NDArray[np.float32] = self.model.encode_text(input_ids, attention_mask).text_feat.cpu().numpy()
        return vectors


class OnnxEncoder:
    """An exported bundle as an `Encoder`, in ONNX Runtime on the CPU.

    Args:
        folder: the bundle.
        threads: of ONNX Runtime; None lets it take the cores there are.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        CheckpointError: the bundle is damaged.
    """

    backend = "onnx-cpu"

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        if find_spec("onnxruntime") is None:
            raise MissingExtraError("onnxruntime", "onnx")
        from export.bundle import read_bundle

        self.bundle: Bundle = read_bundle(folder)
        self.processor = Processor.load(folder)
        self.model_hash = self.bundle.model_hash
        self.embed_dim = self.bundle.embed_dim
        self.precision = self.bundle.precision
        self._threads = threads

    @cached_property
    def _image_session(self) -> Any:
        return open_session(self.bundle.folder / "image_encoder.onnx", self._threads)

    @cached_property
    def _text_session(self) -> Any:
        return open_session(self.bundle.folder / "text_encoder.onnx", self._threads)

    def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E]."""
        vectors: NDArray[np.float32] = self._image_session.run(["image_embeds"], {"pixel_values": pixel_values})[0]
        return vectors

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and mask [B, S] to L2-normalised vectors [B, E]."""
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        vectors: NDArray[np.float32] = self._text_session.run(["text_embeds"], feed)[0]
        return vectors


def open_session(path: Path, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU.

    Raises:
        CheckpointError: ONNX Runtime does not accept the file.
        TclError: it chose another provider than the CPU.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; the rest is advice on graph clean-up
    if threads is not None:
        options.intra_op_num_threads = threads
    wanted = "CPUExecutionProvider"
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    except Exception as error:  # its exceptions share no public base class
        raise CheckpointError(
            f"{path}: ONNX Runtime cannot open it: {' '.join(str(error).split())[:300]}", hint="export the model again"
        ) from error
    if session.get_providers() != [wanted]:
        raise TclError(f"{path}: ONNX Runtime runs it on {', '.join(session.get_providers())}, not on the CPU")
    return session


def open_encoder(
    model: str | None = None,
    backend: Literal["auto", "torch", "onnx"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Encoder:
    """The encoder a command means.

    Args:
        model: a run, model folder, bundle, `.pth` or hub id; None looks for the newest.
        backend: `auto` runs a bundle in ONNX Runtime and any other model in torch; without torch, or where there is no
            run, it takes the newest bundle.
        device: where torch computes.

    Raises:
        UsageError: there is no such model, or the backend cannot run it.
        MissingExtraError: the backend is not installed.
    """
    source = find_bundle(model) if backend == "onnx" else _find(model, bundles=backend == "auto")
    if source.kind == "bundle":
        if backend == "torch":
            raise UsageError(
                f"{source.location} is an exported bundle, which torch cannot run",
                hint="leave out --backend torch, or name the run it was exported from with --model",
            )
        if device == "cuda":
            raise UsageError("bundles run on the CPU", hint="leave out --device, or use --backend torch with a run")
        return OnnxEncoder(source.path)
    if find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    from tcl.checkpoint import load_model

    return TorchEncoder(load_model(source.location), choose_device(device))


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
