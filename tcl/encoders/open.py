"""Which encoder a command gets: that of a model in torch, or that of an exported bundle, with the same vectors.

With it comes the matcher for re-ranking: the fusion encoder of the same model or bundle.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from tcl.encoders.base import Encoder, Matcher, check_verified
from tcl.encoders.embedder import Embedder
from tcl.encoders.fastest import choose
from tcl.encoders.onnx import OnnxEncoder, OnnxMatcher, Precision
from tcl.encoders.sessions import Place
from tcl.encoders.torch import TorchEncoder, TorchMatcher
from tcl.errors import MissingExtraError, UsageError
from tcl.machine.devices import choose_device
from tcl.weights.find import ModelSource, find_bundle, find_model
from tcl.weights.untrained import check_trained

if TYPE_CHECKING:
    from tcl.encoders.bundle import Bundle
    from tcl.encoders.tensorrt.encoder import TensorRTEncoder

BACKENDS = ("auto", "torch", "torch-compiled", "onnx", "onnx-trt", "trt")
DEVICES = ("auto", "cpu", "cuda")


def open_encoder(
    model: str | None = None,
    backend: Literal["auto", "torch", "torch-compiled", "onnx", "onnx-trt", "trt"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision = "auto",
    lanes: int | None = None,
    say: Callable[[str], object] = lambda text: None,
    allow_unverified: bool = False,
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
        allow_unverified: open graphs and engines that failed their verification, too.

    Raises:
        UsageError: there is no such model, it has no trained projections, it failed its verification, or the backend
            cannot run it.
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
            return _known_as(named, open_encoder(*fastest, lanes, say, allow_unverified))  # type: ignore[arg-type]
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
        if not allow_unverified:
            check_verified(encoder)
        return _known_as(named, encoder)
    if find_spec("torch") is None:
        raise MissingExtraError("torch", "train")
    from tcl.weights.load import load_model

    loaded = load_model(source.location)
    check_trained(loaded.untrained, source.location, "vectors")
    return TorchEncoder(loaded, choose_device(device), precision, backend == "torch-compiled")


def _known_as(named: str | None, encoder: Encoder) -> Encoder:
    """An encoder whose errors name the packed bundle that a user gave, rather than the folder in the cache."""
    bundle: Bundle | None = getattr(encoder, "bundle", None)
    if bundle is not None and named is not None and named.endswith(".tar"):
        encoder.bundle = replace(bundle, packed=Path(named))  # type: ignore[attr-defined]
    return encoder


def find_runnable(model: str | None = None) -> ModelSource:
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


def load(
    model: str | Path | None = None,
    backend: Literal["auto", "torch", "torch-compiled", "onnx", "onnx-trt", "trt"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Precision = "auto",
    allow_unverified: bool = False,
) -> Embedder:
    """Open a model for embedding, as the commands do.

    Args:
        model: a run, model folder, exported bundle, `.pth` or hub id; None takes `$TCL_MODEL` or the newest run.
        backend: `auto` takes the fastest that `tcl bench` has verified here; else a bundle runs in ONNX Runtime, any
            other model in torch.
        device: `auto`, `cpu` or `cuda`.
        precision: that the model computes in; `auto` takes the best that the model and the device have.
        allow_unverified: open a bundle that failed its verification, too.

    Raises:
        UsageError: there is no such model, it cannot run so, or it failed its verification.
        MissingExtraError: the backend is not installed.
    """
    named = None if model is None else str(model)
    return Embedder(open_encoder(named, backend, device, precision, allow_unverified=allow_unverified))


def matcher_of(encoder: Encoder) -> Matcher:
    """The fusion encoder that belongs to an encoder; shares its weights.

    Raises:
        UsageError: it is of a bundle that was exported without, or of a model whose matching head is not trained.
    """
    if isinstance(encoder, TorchEncoder):
        check_trained(encoder.model.untrained, "the model", "match scores")
        return TorchMatcher(encoder.model)
    return OnnxMatcher(cast("OnnxEncoder | TensorRTEncoder", encoder))  # there are no others
