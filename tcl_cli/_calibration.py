"""The real inputs that `tcl export` verifies and calibrates with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tcl.errors import DataError, UsageError
from tcl_cli._console import out as console

if TYPE_CHECKING:
    from tcl.data.inputs.listing import Inputs

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
