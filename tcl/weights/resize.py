"""A trained model made to read images of another size."""

from __future__ import annotations

from dataclasses import replace

from tcl.errors import ConfigError
from tcl.models.tcl import TCL
from tcl.models.vision import build_vision_encoder, resize_position_embeddings


def resize_images(model: TCL, size: tuple[int, int]) -> None:
    """Change the image size of a model in place: its position embeddings are resampled, as published.

    Args:
        model: with its processor; trained at a square size.
        size: (height, width) in pixels.

    Raises:
        ConfigError: smaller than a patch, or the model was not trained at a square size.
    """
    if size == model.processor.image_size:
        return
    from tcl.weights.files import hash_model

    rows, columns = model.visual_encoder.grid_size
    if rows != columns:
        raise ConfigError(
            f"position embeddings of {rows} x {columns} patches cannot be resized: they are no square",
            hint="leave the image size as it is",
        )
    config = model.config.model_copy(update={"image_size": size[0] if size[0] == size[1] else list(size)})
    encoder = build_vision_encoder(config.image_encoder, size, **config.image_encoder_args)
    state = model.visual_encoder.state_dict()
    state["pos_embed"] = resize_position_embeddings(state["pos_embed"], encoder.grid_size)
    encoder.load_state_dict(state)
    model.visual_encoder = encoder.to(model.device).train(model.training)
    model.config = config
    model.processor = replace(model.processor, image_size=size)
    model.model_hash = hash_model(model)
