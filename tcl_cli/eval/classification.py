"""`tcl eval classification`: zero-shot, by the captions of the classes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from tcl.weights.find import find_model
from tcl_cli._console import out
from tcl_cli._options import (
    INPUT_PANEL,
    BatchOption,
    DeviceOption,
    ImageSizeOption,
    JsonOption,
    ModelOption,
    PredictionsOption,
    WorkersOption,
    option,
)
from tcl_cli.eval.evaluation import check_output, list_bad, load, processes, show

if TYPE_CHECKING:
    from tcl.evaluation.classification import Prediction

EPILOG = """\
[bold]Examples[/]

  tcl eval classification --data pets/
  tcl eval classification --data pets/ --template "a photo of a {}" --template "a {}, a kind of pet"
  tcl eval classification --data pets/ --model runs/demo --predictions said.jsonl --json
"""


def classification(
    data: Annotated[
        str,
        option(
            metavar="FOLDER",
            help="Holds one folder of images per class, named after it; _ is a space.",
            panel=INPUT_PANEL,
        ),
    ],
    template: Annotated[
        list[str] | None,
        option(
            help="A caption with {} for the class; repeat it, and the vectors of all are averaged. Default: five "
            "that fit photographs.",
            panel=INPUT_PANEL,
        ),
    ] = None,
    model: ModelOption = None,
    predictions: PredictionsOption = None,
    image_size: ImageSizeOption = None,
    batch_size: BatchOption = 64,
    workers: WorkersOption = 4,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Zero-shot top-1 and top-5 accuracy: the class whose captions are nearest to the image."""
    from tcl.evaluation.classification import TEMPLATES, LabelledImages, check_templates, evaluate_classification

    with processes(device) as (place, share):
        with share.agree():
            location = find_model(model).location
            templates = tuple(template or TEMPLATES)
            check_templates(templates)
            check_output("--predictions", predictions, [])
            total = len(LabelledImages.from_folder(data).images)
            loaded = load(location, place, image_size, "vectors")
        said: list[Prediction] = []
        with out.progress("Classifying", total=total) as advance:
            result = evaluate_classification(
                loaded,
                data,
                templates,
                batch_size=batch_size,
                workers=workers,
                share=share,
                predicted=said.append,
                progress=advance,
            )
        if share.rank:
            return
        list_bad(result.bad)

        def say() -> None:
            out.message(
                f"{location}: {result.images} images, {len(result.classes)} classes, {len(templates)} templates"
            )
            out.table(["class", "images", "top-1 %", "top-5 %", "taken for"], result.table())

        values = {"task": "classification", "model": location, "data": data, "templates": list(templates)}
        show(values | asdict(result), say, map(_line, said), predictions, json)


def _line(prediction: Prediction) -> dict[str, Any]:
    label, confidence = prediction.top[0]
    return {
        "image": prediction.image,
        "label": prediction.label,
        "predicted": label,
        "confidence": confidence,
        "top": [{"label": label, "confidence": share} for label, share in prediction.top],
    }
