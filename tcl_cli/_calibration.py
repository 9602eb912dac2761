"""The real inputs that `tcl export` verifies and calibrates with."""

from __future__ import annotations

from tcl.errors import DataError
from tcl_cli._console import out as console

SAMPLES = 32  # real images, and texts, that are used


def real_images(source: str) -> list[str]:
    """The first images of a source that can be read.

    Raises:
        UsageError: there is no such source.
        DataError: none can be read.
    """
    from tcl.data.images import ImageError, decode
    from tcl.inputs import list_inputs

    inputs = list_inputs(source, "image")
    readable = []
    for image in (inputs.location(row) for row in range(min(len(inputs), SAMPLES))):
        try:
            decode(image)
            readable.append(image)
        except ImageError as error:
            console.warning(f"not used: {error.message}")
    if not readable:
        raise DataError(f"--calibrate {source}: none of the first {SAMPLES} images can be read", hint="name others")
    return readable


def real_texts(source: str) -> list[str]:
    """The first texts of a source, those without words left out.

    Raises:
        UsageError: there is no such source.
        DataError: none has words.
    """
    from tcl.data.captions import clean_caption
    from tcl.inputs import list_inputs

    inputs = list_inputs(source, "text")
    texts = [str(inputs.values[row]) for row in range(min(len(inputs), SAMPLES))]
    found = [text for text in texts if clean_caption(text)]
    if not found:
        raise DataError(f"--calibrate-texts {source}: none of the first {SAMPLES} texts has words", hint="name others")
    return found
