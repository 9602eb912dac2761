"""Engines of a bundle as an `Encoder`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tcl.data.processor import Processor
from tcl.encoders.bundle import Bundle, read_bundle
from tcl.encoders.graphs import PRECISIONS
from tcl.encoders.tensorrt.build import BuildOptions
from tcl.encoders.tensorrt.cuda import Gpu, current_gpu, runtime
from tcl.encoders.tensorrt.engine import engines_of, find_engine, mismatch
from tcl.encoders.tensorrt.engines import build_engine
from tcl.encoders.tensorrt.package import Flavour, open_package
from tcl.encoders.tensorrt.profiles import Profiles
from tcl.encoders.tensorrt.session import STREAMS, EngineSession
from tcl.errors import CheckpointError, TclError, UsageError

PREFERRED = ("fp16", "bf16", "fp32", "fp8", "int8")
"""Precisions in the order in which `auto` takes them; 8 bits come last: their worth depends on the calibration."""


class TensorRTEncoder:
    """An exported bundle as an `Encoder`, in TensorRT.

    An engine that is missing, damaged, or for another machine is built anew from the bundle's ONNX files.

    Args:
        folder: the bundle.
        precision: of the graphs; `auto` takes the first of `PREFERRED` that the bundle has.
        flavour: of TensorRT; `auto` prefers that for data centres.
        rebuild: whether engines may be built; without it, a missing one is an error.
        say: told in one line why one is built.

    Raises:
        MissingExtraError: TensorRT or cuda-python is not installed.
        UsageError: there is no GPU, or the bundle lacks the precision.
        CheckpointError: the bundle is damaged.
    """

    lanes = STREAMS

    def __init__(
        self,
        folder: Path,
        precision: str = "auto",
        flavour: Flavour | Literal["auto"] = "auto",
        rebuild: bool = True,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._package = open_package(flavour)
        runtime()  # says how to install it where it is missing
        gpu = current_gpu()
        if gpu is None:
            raise UsageError(
                f"{self._package.title} computes on a GPU, and sees none here",
                hint="check `nvidia-smi`, or use --backend onnx",
            )
        self._gpu: Gpu = gpu
        self._rebuild, self._say = rebuild, say
        self.bundle: Bundle = read_bundle(folder)
        self.processor = Processor.load(folder)
        self.model_hash = self.bundle.model_hash
        self.embed_dim = self.bundle.embed_dim
        self.precision = choose_precision(self.bundle, precision)
        self.backend = f"tensorrt{'-rtx' if self._package.flavour == 'rtx' else ''}-cuda"
        self._sessions: dict[str, EngineSession] = {}
        self._opening = Lock()

    @property
    def failed_engine(self) -> Path | None:
        """An engine that is taken here although its verification failed."""
        for graph in self.bundle.graphs:
            for engine in engines_of(self.bundle, graph, self.precision):
                fits = mismatch(engine.sidecar, self.bundle, self._package, self._gpu) is None
                if fits and engine.sidecar.verified is False:
                    return engine.path
        return None

    def session(self, graph: str) -> EngineSession:
        """The session of a graph; opened when it is first asked for, and shared by all threads.

        Raises:
            UsageError: the bundle has no such graph.
            CheckpointError: there is no engine that fits, and none may be built.
            TclError: the build failed.
        """
        with self._opening:
            if graph not in self._sessions:
                self._sessions[graph] = self._open(graph)
            return self._sessions[graph]

    def encode_image(self, pixel_values: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 pixels [B, 3, H, W] to L2-normalised vectors [B, E]."""
        return self.session("image_encoder").run(["image_embeds"], {"pixel_values": pixel_values})[0]

    def encode_image_tokens(self, pixel_values: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 pixels [B, 3, H, W] to vectors [B, E] and the last token states [B, T, W]."""
        outputs = ["image_embeds", "image_tokens"]
        vectors, tokens = self.session("image_tokens").run(outputs, {"pixel_values": pixel_values})
        return vectors, tokens

    def encode_text(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids and mask [B, S] to L2-normalised vectors [B, E]."""
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.session("text_encoder").run(["text_embeds"], feed)[0]

    def _open(self, graph: str) -> EngineSession:
        try:
            return EngineSession(
                self._package, find_engine(self.bundle, graph, self.precision, self._package, self._gpu)
            )
        except CheckpointError as error:
            if not self._rebuild:
                raise
            reason = error.message
        self._say(f"{reason}; building it from the ONNX file, which takes minutes")
        try:
            built = build_engine(self.bundle, graph, self.precision, self._options(graph), self._package)
        except TclError as error:
            raise CheckpointError(f"{reason}; building it failed: {error.message}", hint=error.hint) from error
        return EngineSession(self._package, built)

    def _options(self, graph: str) -> BuildOptions:
        """Those of the engine that is to be replaced, as far as they mean something here."""
        for engine in engines_of(self.bundle, graph, self.precision):
            if engine.sidecar.flavour == self._package.flavour:
                return engine.sidecar.options
            return BuildOptions(engine.sidecar.options.profiles)
        return BuildOptions(Profiles.parse([], self.processor.max_length))


def choose_precision(bundle: Bundle, precision: str) -> str:
    """The precision to run.

    Raises:
        UsageError: the bundle lacks it.
    """
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"--precision {precision}: no such precision", hint=f"one of auto, {', '.join(PRECISIONS)}")
    found = [name for name in PREFERRED if name in bundle.precisions and precision in ("auto", name)]
    if not found:
        runs = next((name for name in PREFERRED if name in bundle.precisions), None)
        again = f"export the model again with --precision {precision}"
        raise UsageError(
            f"{bundle.folder}: has no {precision} graphs, only {', '.join(bundle.precisions)}",
            hint=f"leave out --precision, which then is {runs}" if runs else again,
        )
    return found[0]
