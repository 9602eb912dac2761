"""`tcl explain`: where in an image each word of a caption comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tcl_cli._console import out as console
from tcl_cli._options import (
    OUTPUT_PANEL,
    App,
    Device,
    DeviceOption,
    JsonOption,
    LayerOption,
    ModelOption,
    argument,
    option,
)

if TYPE_CHECKING:
    from tcl.explain.figure import Panel
    from tcl.explain.gradcam import Explanation

EPILOG = """\
[bold]Examples[/]

  tcl explain photo.jpg "a dog runs on the beach" --out dog.png
  tcl explain scenes:val:0:17 "a small red circle" --out circle.png --model runs/demo
  tcl explain photo.jpg "a dog runs on the beach" --out dog.png --layer 8 --json
"""


app = App()


@app.command(epilog=EPILOG)
def explain(
    image: Annotated[str, argument(metavar="IMAGE", help="An image, or a scenes: reference.")],
    caption: Annotated[str, argument(metavar="CAPTION", help="A text about it.")],
    out: Annotated[
        Path,
        option("--out", "-o", metavar="PNG", help="The figure; one that is there is replaced.", panel=OUTPUT_PANEL),
    ],
    layer: LayerOption = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Draw a heat map of an image for each word of a caption (Grad-CAM of the fusion encoder)."""
    from tcl.data.boxes import region_box
    from tcl.data.images.decode import decode
    from tcl.data.tokenizer import clean_caption
    from tcl.errors import UsageError
    from tcl.explain.figure import Panel, draw_figure
    from tcl.explain.gradcam import explain as explain_caption
    from tcl.explain.gradcam import fusion_layers
    from tcl.files.atomic import atomic_file
    from tcl.files.named import allow
    from tcl.files.remote import is_url

    _check_output(out, image)
    if not clean_caption(caption).strip():
        raise UsageError(f"the caption {caption!r} holds no words", hint="describe the image")
    if is_url(image):
        allow(image)
    picture = decode(image.removeprefix("file://"))
    source, loaded = _load(model, device)
    found = explain_caption(loaded, picture, caption, layer)
    size = picture.height, picture.width
    if found.cut:
        console.warning(
            f"the model reads {loaded.processor.max_length} tokens; {found.cut} words at the end of the caption are "
            "left out"
        )
    if found.layer == fusion_layers(loaded)[-1]:
        console.warning(f"layer {found.layer} is the last: behind it only [CLS] is read, so no word has a map there")
    named = [("caption", found.caption_map), *zip(found.words, found.word_maps, strict=True)]
    panels = [Panel(label, heat, region_box(heat, size) if heat.any() else None) for label, heat in named]
    figure = draw_figure(picture, caption, _note(found), panels)
    with atomic_file(out) as temporary:
        figure.save(temporary, "PNG")
    if not json:
        console.message(f"{out}: {len(found.words)} words; match {found.probability:.3f}; layer {found.layer}")
        return
    console.json({"image": image, "model": source, "out": str(out)} | _values(found, caption, panels, size))


def _values(found: Explanation, caption: str, panels: Sequence[Panel], size: tuple[int, int]) -> dict[str, Any]:
    from tcl.data.boxes import peak

    places = [{"peak": peak(panel.heat, size) if panel.box else None, "box": panel.box} for panel in panels]
    return {
        "size": [size[1], size[0]],
        "layer": found.layer,
        "match": found.probability,
        "caption": {"text": caption} | places[0],
        "words": [{"word": word} | place for word, place in zip(found.words, places[1:], strict=True)],
        "words_left_out": found.cut,
    }


def _note(found: Explanation) -> str:
    return (
        f"match {found.probability:.3f}; Grad-CAM of fusion layer {found.layer}; each map is scaled to its own "
        "maximum, and boxed where it is above half of that around its peak"
    )


def _load(model: str | None, device: Device) -> tuple[str, Any]:
    from tcl.machine.devices import choose_device
    from tcl.weights.find import find_model
    from tcl.weights.load import load_model
    from tcl.weights.untrained import check_trained

    source = find_model(model)
    loaded = load_model(source.location)
    check_trained(loaded.untrained, source.location, "match scores")  # whose gradient the maps are
    return source.location, loaded.to(choose_device(device))


def _check_output(path: Path, image: str) -> None:
    """Find out what cannot be written before the model is loaded."""
    from tcl.errors import UsageError

    if path.suffix.lower() != ".png":
        raise UsageError(f"--out {path}: the figure is a PNG", hint=f"write --out {path.with_suffix('.png')}")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder", hint=f"name a file in it: --out {path / 'explanation.png'}")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: no folder {path.parent}", hint="make it, or choose another place")
    if path.exists() and Path(image).exists() and path.samefile(image):
        raise UsageError(f"--out {path} is the image itself", hint="choose another name")
