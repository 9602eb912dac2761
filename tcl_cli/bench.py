"""`tcl bench`: how fast this machine computes a model's vectors, in every way it can."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tcl.errors import UsageError
from tcl_cli._console import format_value
from tcl_cli._console import out as console
from tcl_cli._options import (
    INPUT_PANEL,
    MODEL_PANEL,
    OUTPUT_PANEL,
    SPEED_PANEL,
    App,
    Device,
    JsonOption,
    ModelOption,
    option,
)

if TYPE_CHECKING:
    from tcl.encoders.bundle import Bundle
    from tcl.weights.find import ModelSource

EPILOG = """\
[bold]Examples[/]

  tcl bench
  tcl bench --model exports/mine --images photos/ --all
  tcl bench --model runs/mine --bundle exports/mine --batch-sizes 1,16,64,256 --plot bench.png
  tcl bench --json > bench.json

Measures torch, ONNX Runtime and TensorRT where they are installed, in every precision of the bundle. The result is \
kept in the cache folder: `--backend auto` of other commands takes what was fastest and verified.
"""
MOST_BATCH = 65_536
END_TO_END = 1024  # images, at most


app = App()


@app.command(epilog=EPILOG)
def bench(
    model: ModelOption = None,
    bundle: Annotated[
        Path | None,
        option(
            "--bundle",
            help="An exported bundle of the model. Default: the newest one of this model under ./exports.",
            panel=MODEL_PANEL,
        ),
    ] = None,
    device: Annotated[
        Device, option("--device", help="auto: the CPU, and a GPU when there is one.", panel=MODEL_PANEL)
    ] = "auto",
    compiled: Annotated[
        bool | None,
        option(
            "--compile/--no-compile",
            help="Also torch's compiler. Default: on a GPU only; on a CPU it compiles for a minute.",
            panel=MODEL_PANEL,
        ),
    ] = None,
    images: Annotated[
        str | None,
        option(
            "--images",
            metavar="SOURCE",
            help="Real images, a folder or glob. Default: built-in scenes.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    everything: Annotated[
        bool,
        option(
            "--all",
            help=f"Also read, decode, encode and write up to {END_TO_END} of --images, and name the bottleneck.",
            panel=INPUT_PANEL,
        ),
    ] = False,
    batch_sizes: Annotated[
        str, option("--batch-sizes", metavar="LIST", help="Inputs at once.", panel=SPEED_PANEL)
    ] = "1,8,32",
    seconds: Annotated[
        float, option("--seconds", min=0.01, help="For each way, kind and batch size.", panel=SPEED_PANEL)
    ] = 3.0,
    workers: Annotated[
        int, option("--workers", "-w", min=1, help="Threads that decode, with --all.", panel=SPEED_PANEL)
    ] = 4,
    plot: Annotated[
        Path | None,
        option("--plot", metavar="PNG", help="A picture: throughput against batch size.", panel=OUTPUT_PANEL),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure every way in which this machine can compute a model's vectors."""
    from export.bench.bench import BenchPlan
    from export.bench.bench import bench as measure
    from export.bench.ways import find_ways
    from tcl.encoders.fastest import save

    if everything and images is None:
        raise UsageError("--all measures how files are read", hint="name some by --images FOLDER")
    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"{plot}: the picture is a PNG", hint=f"--plot {plot.with_suffix('.png')}")
    plan = BenchPlan(_sizes(batch_sizes), seconds, images, END_TO_END if everything else 0, workers)
    source, own = _sides(model, bundle)
    ways = find_ways(source, own, device, compiled)
    for way in ways:
        console.message(f"To measure: {way.name}")
    if own is not None and not own.verified:
        console.warning(f"{own.folder} is marked unverified: --backend auto takes no precision that is")
    with console.progress("Measuring", plan.steps(len(ways))) as advance:
        verified = own.is_verified if own else lambda precision: True
        record = measure(ways, plan, verified, lambda step: advance(1, now=step))
    path = save(record)
    _report(record, plot, json)
    console.message(f"Kept in {path}")
    if own is None:
        console.hint("tcl export makes a bundle, whose graphs are then measured too")


def _sides(model: str | None, bundle: Path | None) -> tuple[ModelSource | None, Bundle | None]:
    """The model for torch, and the bundle for all else; one of them may be missing.

    Raises:
        UsageError: there is no model at all, or `bundle` is none.
    """
    from export.bench.ways import check_same_model, find_bundle_of, find_run_of
    from tcl.encoders.bundle import read_bundle
    from tcl.encoders.open import find_runnable
    from tcl.weights.find import CONFIG_FILE, ModelSource, find_bundle, read_json

    source = find_runnable(model)
    if source.kind == "bundle":
        if bundle is not None:
            raise UsageError("--model is a bundle already", hint="leave out --bundle")
        own = read_bundle(source.path)
        run = find_run_of(own.model_hash)
        return None if run is None else ModelSource("model", str(run)), own
    recorded = str(read_json(source.path / CONFIG_FILE).get("model_hash")) if source.kind == "model" else None
    if bundle is None:
        # A file or hub id says nothing of its hash before it is loaded.
        found = None if recorded is None else find_bundle_of(recorded)
        return source, None if found is None else read_bundle(found)
    own = read_bundle(find_bundle(str(bundle)).path)
    if recorded is not None:
        check_same_model(str(bundle), own.model_hash, source.location, recorded)
    return source, own


def _sizes(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = (0,)
    if not 1 <= found[0] <= found[-1] <= MOST_BATCH:
        raise UsageError(f"--batch-sizes {text}: not a list of batch sizes", hint="for example --batch-sizes 1,8,32")
    return found


def _report(record: dict[str, Any], plot: Path | None, json: bool) -> None:
    """Draw the picture, name the ways that failed, and print the figures."""
    if plot is not None:
        from export.bench.chart import write_chart

        write_chart(plot, record)
        console.message(str(plot))
    for result in record["results"]:
        if result["error"]:
            console.warning(f"{_name(result)}: {result['error']}")
    if json:
        console.json(record)
    else:
        _show(record)


def _show(record: dict[str, Any]) -> None:
    results = [result for result in record["results"] if not result["error"]]
    batches = sorted({each["batch"] for result in results for each in result["throughput"]})
    for kind, unit in (("image", "images/s"), ("text", "sentences/s")):
        columns = [unit, *(f"{batch} at once" for batch in batches), "ms for one", "peak MB", "GPU MB", "cosine"]
        rows = [_row(result, kind, batches) for result in results]
        console.table([*columns, "of peak", "verified"], rows)
    for result in results:
        if whole := result.get("end_to_end"):
            console.message(
                f"{_name(result)}, from file to file: {whole['images_per_second']:.0f} images/s; the bottleneck is "
                f"{whole['bottleneck']} ({_rates(whole['rates'])})"
            )
    console.message(f"Cosines are to {record['reference']}, the smallest of images or texts like those measured.")


def _row(result: dict[str, Any], kind: str, batches: Sequence[int]) -> list[str]:
    rates = {each["batch"]: each for each in result["throughput"] if each["kind"] == kind}
    latency = (result["latency"] or {}).get(kind)
    cosine, share = result["cosine"][kind], result["share_of_peak"][kind]
    return [
        _name(result),
        *(_spread(rates.get(batch)) for batch in batches),
        "-" if latency is None else _spread({name: 1000 * value for name, value in latency.items()}),
        _megabytes(result["memory"]),
        _megabytes(result["device_memory"]),
        "-" if cosine is None else f"{cosine['min']:.6f}",
        "-" if share is None else f"{share:.0%}",
        "yes" if result["verified"] else "no",
    ]


def _name(result: dict[str, Any]) -> str:
    return f"{result['backend']}-{result['device']} {result['precision']}"


def _spread(found: dict[str, float] | None) -> str:
    """Median, and how far the middle half of the values reaches to both sides of it."""
    if found is None:
        return "-"
    return f"{found['median']:.3g} ±{(found['high'] - found['low']) / 2 / found['median']:.0%}"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}"


def _rates(rates: dict[str, float]) -> str:
    return ", ".join(f"{stage} {format_value(rate)}/s" for stage, rate in rates.items())
