"""An exported bundle as an encoder in ONNX Runtime, and as a matcher in ONNX Runtime or TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tcl.data.processor import Processor
from tcl.encoders.graphs import PRECISIONS
from tcl.encoders.sessions import Place, open_session
from tcl.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from tcl.encoders.bundle import Bundle
    from tcl.encoders.tensorrt.encoder import TensorRTEncoder

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8", "fp8"]

PREFERRED: dict[str, tuple[str, ...]] = {
    "cpu": ("fp32", "int8", "fp16"),
    "cuda": ("fp16", "fp32"),
    "trt": ("fp16", "fp32"),
}
"""Precisions of a bundle in the order in which `auto` takes them; ONNX Runtime runs no others there."""

_BY = {"cpu": "on cpu", "cuda": "on cuda", "trt": "by its TensorRT provider"}


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
        from tcl.encoders.bundle import read_bundle

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


class OnnxMatcher:
    """Re-ranking with a bundle: what `TorchMatcher` is for a model.

    Args:
        encoder: of the bundle.

    Raises:
        UsageError: the bundle was exported without these graphs.
        CheckpointError: it is damaged.
    """

    def __init__(self, encoder: OnnxEncoder | TensorRTEncoder) -> None:
        self._encoder = encoder
        self._key_values = encoder.session("image_key_values")
        self._matcher = encoder.session("matcher")
        self._last: tuple[NDArray[Any], NDArray[Any]] | None = None

    def image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E] and the last token states [B, T, W]."""
        return self._encoder.encode_image_tokens(pixel_values)

    def match(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], image_tokens: NDArray[Any]
    ) -> NDArray[np.float32]:
        """ITM logits [N, 2] of texts [N, S] with one image [1, T, W] or one each [N, T, W]; float16 or float32."""
        images = self._of_one(image_tokens) if len(image_tokens) == 1 else self._project(image_tokens)
        feed = {"input_ids": input_ids, "attention_mask": attention_mask, "image_key_values": images}
        logits: NDArray[np.float32] = self._matcher.run(["itm_logits"], feed)[0]
        return logits

    def _of_one(self, image_tokens: NDArray[Any]) -> NDArray[Any]:
        """Keys and values of one image, kept for the next texts that it is compared with."""
        if self._last is None or not np.array_equal(self._last[0], image_tokens):
            self._last = image_tokens.copy(), self._project(image_tokens)
        return self._last[1]

    def _project(self, image_tokens: NDArray[Any]) -> NDArray[Any]:
        feed = {"image_tokens": np.ascontiguousarray(image_tokens, dtype=np.float32)}
        projected: NDArray[Any] = self._key_values.run(["image_key_values"], feed)[0]
        return projected
