"""`tcl export`: a model as verified ONNX graphs, and TensorRT engines built from them.

Real images and texts, where given, are what it verifies and calibrates with.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tcl.errors import DataError, UsageError
from tcl_cli._console import out as console
from tcl_cli._engines import (
    HardwareOption,
    ProfileOption,
    TrtOption,
    VersionOption,
    WorkspaceOption,
    add_engines,
    build_for_model,
    check_engines,
    check_ranges,
    engines_json,
    request_engines,
)
from tcl_cli._export_report import show_checks
from tcl_cli._options import OUTPUT_PANEL, App, JsonOption, ModelOption, option

if TYPE_CHECKING:
    from export.bundle import ExportedBundle
    from export.verify.checks import Bounds
    from tcl.data.inputs.listing import Inputs
    from tcl.models.tcl import TCL

SAMPLES = 32  # real images, and texts, that are used
SOURCES = {
    "image": "give a folder of images, a list or a table of them; texts are for --calibrate-texts",
    "text": "give a .txt of sentences or a table with a text column; images are for --calibrate",
}


def real_images(source: str) -> list[str]:
    """The first images of a source that can be read.

    Raises:
        UsageError: there is no such source.
        DataError: none can be read.
    """
    from tcl.data.images.decode import ImageError, decode

    inputs = _listed("--calibrate", source, "image")
    readable = []
    for image in (inputs.location(row) for row in range(min(len(inputs), SAMPLES))):
        try:
            decode(image)
            readable.append(image)
        except ImageError as error:
            console.warning(f"not used: {error.message}")
    if not readable:
        raise DataError(f"--calibrate {source}: none of the first {SAMPLES} images can be read", hint=SOURCES["image"])
    return readable


def real_texts(source: str) -> list[str]:
    """The first texts of a source, those without words left out.

    Raises:
        UsageError: there is no such source.
        DataError: none has words.
    """
    from tcl.data.tokenizer import clean_caption

    inputs = _listed("--calibrate-texts", source, "text")
    texts = [str(inputs.values[row]) for row in range(min(len(inputs), SAMPLES))]
    found = [text for text in texts if clean_caption(text)]
    if not found:
        raise DataError(
            f"--calibrate-texts {source}: none of the first {SAMPLES} texts has words", hint=SOURCES["text"]
        )
    return found


def _listed(option: str, source: str, kind: Literal["image", "text"]) -> Inputs:
    """What a source holds; errors name the option, and hints are not those of `tcl embed`."""
    from tcl.data.inputs.listing import list_inputs

    try:
        return list_inputs(source, kind)
    except (UsageError, DataError) as error:
        hint = SOURCES[kind] if "--" in (error.hint or "--") else error.hint
        raise (UsageError if isinstance(error, UsageError) else DataError)(f"{option} {error.message}", hint) from error


EXPORTS = Path("exports")
GRAPHS_PANEL = "Graphs"
VERIFY_PANEL = "Verification"

EPILOG = """\
[bold]Examples[/]

  tcl export
  tcl export --model runs/flickr --out exports/flickr --precision fp32,fp16
  tcl export --precision int8 --calibrate photos/ --calibrate-texts captions.txt
  tcl export --trt --precision fp8 --calibrate photos/ --calibrate-texts captions.txt
  tcl export --model TCL_4M.pth --precision fp16 --bound fp16=0.999 --pack
  tcl export --trt --precision fp16 --profile image=1,64,256
  tcl export --trt --precision fp16 --model exports/flickr
  tcl export --triton models/
  tcl embed images/ --out vecs.npy --model exports/flickr

The bundle holds a graph for images, one for texts, those that re-ranking needs, that of a fine-tuned model's task, \
what feeds them, and bundle.json. Exit code 3: a figure is outside its bound; the files are kept, marked unverified.
"""


Int8 = Literal["auto", "dynamic", "static"]


app = App()


@app.command(epilog=EPILOG)
def export(
    model: ModelOption = None,
    out: Annotated[
        Path | None, option("--out", "-o", help="A new folder. Default: exports/NAME_OF_THE_MODEL.", panel=OUTPUT_PANEL)
    ] = None,
    onnx: Annotated[
        bool,
        option(
            "--onnx",
            help="Write ONNX graphs, as without this option. Refused where --model is a bundle, which has them.",
            panel=OUTPUT_PANEL,
        ),
    ] = False,
    pack: Annotated[
        bool, option("--pack", help="Also write the bundle as one file, OUT.tar, for --model.", panel=OUTPUT_PANEL)
    ] = False,
    triton: Annotated[
        Path | None,
        option(
            "--triton",
            metavar="DIR",
            help="Also write the first precision as a new model repository for the Triton inference server.",
            panel=OUTPUT_PANEL,
        ),
    ] = None,
    json: JsonOption = False,
    precision: Annotated[
        str,
        option(
            "--precision",
            "-p",
            metavar="LIST",
            help="One or more of fp32, fp16, bf16, int8, fp8 (for TensorRT), separated by commas; each is a file per "
            "graph.",
            panel=GRAPHS_PANEL,
        ),
    ] = "fp32",
    matcher: Annotated[
        bool, option("--matcher/--no-matcher", help="With the graphs of re-ranking.", panel=GRAPHS_PANEL)
    ] = True,
    int8: Annotated[
        Int8,
        option(
            "--int8",
            help="Find the ranges of int8 for every batch, or once on the calibration images and texts (static, which "
            "TensorRT takes too). auto: static with --calibrate.",
            panel=GRAPHS_PANEL,
        ),
    ] = "auto",
    calibrate: Annotated[
        str | None,
        option(
            "--calibrate",
            metavar="SOURCE",
            help=f"Up to {SAMPLES} real images of a folder or glob, for verification and the ranges of static int8 and "
            "fp8.",
            panel=VERIFY_PANEL,
        ),
    ] = None,
    calibrate_texts: Annotated[
        str | None,
        option(
            "--calibrate-texts",
            metavar="SOURCE",
            help=f"Up to {SAMPLES} real texts, for the same; without them int8 graphs that read text find ranges per "
            "batch.",
            panel=VERIFY_PANEL,
        ),
    ] = None,
    verify: Annotated[
        bool,
        option(
            "--verify/--no-verify",
            help="Compare the written graphs with the model, at several batch sizes and every text length; engines "
            "too, where this machine can run them.",
            panel=VERIFY_PANEL,
        ),
    ] = True,
    bound: Annotated[
        list[str] | None,
        option(
            "--bound",
            metavar="NAME=VALUE",
            help="Move a bound, which the bundle records: fp32 is a largest difference, the others a smallest "
            "cosine, logits.PRECISION a difference of logits.",
            panel=VERIFY_PANEL,
        ),
    ] = None,
    trt: TrtOption = False,
    profile: ProfileOption = None,
    workspace: WorkspaceOption = None,
    hardware_compatible: HardwareOption = False,
    version_compatible: VersionOption = False,
) -> None:
    """Write a model as ONNX graphs that provably compute the same vectors."""
    from export.graphs.write import check_precisions
    from export.verify.checks import Bounds
    from tcl.encoders.graphs import ONNX_RUNTIME
    from tcl.encoders.open import unpacked_model
    from tcl.errors import UsageError, VerificationError
    from tcl.weights.find import find_model

    if bound and not verify:
        raise UsageError("--bound and --no-verify exclude each other", hint="leave one of them out")
    if int8 == "static" and calibrate is None and calibrate_texts is None:
        raise UsageError("--int8 static finds the ranges on real inputs", hint="name some by --calibrate IMAGES")
    precisions = check_precisions([name.strip() for name in precision.split(",") if name.strip()])
    if int8 != "auto" and "int8" not in precisions:
        raise UsageError(f"--int8 {int8} without int8 graphs", hint="add int8 to --precision")
    if triton is not None and precisions[0] not in ONNX_RUNTIME:
        raise UsageError(f"--triton: ONNX Runtime does not run {precisions[0]}", hint="add fp32 or fp16 to --precision")
    bounds = Bounds.parse(bound or [])
    engines = request_engines(
        trt, precisions, profile or [], workspace, hardware_compatible, version_compatible, bounds if verify else None
    )
    source = find_model(unpacked_model(model) if trt else model)
    if engines is not None and source.kind == "bundle":
        of_exports = {
            "--out": out is not None,
            "--onnx": onnx,
            "--triton": triton is not None,
            "--pack": pack,
            "--int8": int8 != "auto",
            "--calibrate": calibrate is not None,
            "--calibrate-texts": calibrate_texts is not None,
            "--no-matcher": not matcher,
        }
        add_engines(source.path, precisions, engines, [name for name, given in of_exports.items() if given], json)
        return
    real = {"--calibrate IMAGES": calibrate, "--calibrate-texts TEXTS": calibrate_texts}
    missing = [option for option, given in real.items() if given is None]
    if engines is not None and "int8" in precisions:
        if int8 == "dynamic":
            raise UsageError("--trt: int8 for TensorRT has its ranges in the graph", hint="leave out --int8 dynamic")
        check_ranges("int8 for TensorRT", missing)
    if "fp8" in precisions:
        check_ranges("fp8", missing)
    target = out or _free_name(source.name)
    tar = target.with_name(f"{target.name}.tar") if pack else None
    if triton is not None and triton in (target, tar):
        raise UsageError(f"--out and --triton are both {triton}", hint="choose another --triton")
    for name, path in (("--out", target), ("--out", tar), ("--triton", triton)):
        if path is not None and path.exists():
            raise UsageError(f"{path}: exists", hint=f"choose another {name}")
    images = real_images(calibrate) if calibrate is not None else []
    texts = real_texts(calibrate_texts) if calibrate_texts is not None else []

    from tcl.models.task_model import TaskModel
    from tcl.weights.load import load_model
    from tcl.weights.untrained import Use, check_trained, lacking

    loaded = load_model(source.location)
    uses: tuple[Use, ...] = ("vectors", "match scores") if matcher else ("vectors",)
    if isinstance(loaded, TaskModel) and (parts := lacking(loaded.untrained, *uses)):
        console.warning(f"{source.location} has no trained {' or '.join(parts)}: the bundle is for its task")
        matcher = matcher and not lacking(loaded.untrained, "match scores")
    else:
        check_trained(loaded.untrained, source.location, *uses)
    console.message(
        f"Exporting {source.location} to {target} in {', '.join(precisions)}" + (" and verifying it" if verify else "")
    )
    static = int8 == "static" or (int8 == "auto" and bool(images))
    bundle = _build(loaded, target, precisions, matcher, verify, images, texts, static, bounds)
    if tar is not None:
        from tcl.encoders.bundle_tar import pack as write_pack

        write_pack(target, tar)
    if not json:
        show_checks(bundle.checks)
    failed = [check for check in bundle.checks if not check.passed]
    if triton is not None and not failed:
        from export.triton import write_repository

        write_repository(target, triton, precisions[0])
        console.message(f"{triton}: a model repository for Triton in {precisions[0]}")
    built = [] if engines is None or failed else build_for_model(loaded, bundle, precisions, engines, images, texts)
    if json:
        console.json(_result(bundle, tar) | engines_json(built))
    else:
        console.data(str(tar or bundle.folder))
    if failed:
        raise VerificationError(
            f"{target}: {failed[0].graph} {failed[0].precision} {failed[0].subject}: {failed[0].detail}",
            hint="the bundle is kept for inspection and marked unverified; do not deploy it",
        )
    check_engines(built)
    if bundle.untrained:
        return
    folder = "images/" if Path("images").is_dir() else "FOLDER"
    backend = "" if set(precisions) & set(ONNX_RUNTIME) else " --backend trt"
    console.hint(f"tcl embed {folder} --out vecs.npy --model {tar or target}{backend}")


def _build(
    model: TCL,
    target: Path,
    precisions: Sequence[str],
    matcher: bool,
    verify: bool,
    images: Sequence[str],
    texts: Sequence[str],
    static: bool,
    bounds: Bounds,
) -> ExportedBundle:
    from export.bundle import build_bundle
    from export.graphs.build import sizes_of
    from tcl.encoders.graphs import graphs

    steps = len(graphs(sizes_of(model), matcher)) * (len(precisions) + verify)
    with console.progress("Exporting", steps) as advance:
        return build_bundle(
            model,
            target,
            precisions,
            matcher=matcher,
            check=verify,
            images=images,
            texts=texts,
            static=static,
            bounds=bounds,
            progress=lambda step: advance(1, now=step),
        )


def _free_name(name: str) -> Path:
    """`exports/name`, or the first of `exports/name-2`, `exports/name-3`, ... that is not taken."""
    names = (EXPORTS / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in names if not path.exists())


def _result(bundle: ExportedBundle, tar: Path | None) -> dict[str, Any]:
    return {
        "out": str(bundle.folder),
        "packed": str(tar) if tar else None,
        "model_hash": bundle.model_hash,
        "precisions": list(bundle.precisions),
        "graphs": list(bundle.graphs),
        "verified": bundle.verified,
        "checks": [check.to_json() for check in bundle.checks],
    }
