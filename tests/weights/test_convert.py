"""Published checkpoints to model folders and back."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tcl.errors import CheckpointError, UsageError
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.weights.convert import EXTRA_FILE, from_reference, reference_state, to_reference
from tcl.weights.load import load_model
from tcl.weights.model_folder import write_model
from tests.conftest import make_tiny_model
from tests.published import (
    WIDE,
    Golden,
    check_accounted,
    make_like,
    model_for,
    recorded_state,
    write_pth,
)


def albef(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As ALBEF's files may be: unused projections of its first version, half precision here and there."""
    halved = {
        name: tensor.half() if "queue" in name and tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    return halved | {
        "combine_text_proj.weight": torch.ones(2, 2),
        "visual_encoder.norm.bias": state["visual_encoder.norm.bias"].half(),
    }


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("case", "change"),
    [("pretrain", dict), ("pretrain", albef), ("retrieval", dict)],
    ids=["TCL", "ALBEF", "retrieval"],
)
def test_a_published_checkpoint_comes_back_bit_for_bit(golden: Golden, tmp_path: Path, case: str, change: Any) -> None:
    state = change(recorded_state(golden, case))
    path = write_pth(tmp_path / "in.pth", state, optimizer={}, epoch=29)
    report = from_reference(path, tmp_path / "model")
    check_accounted(report, set(state), set(load_model(tmp_path / "model").state_dict()))
    to_reference(tmp_path / "model", tmp_path / "out.pth")
    after = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert list(after) == list(state)
    for name, tensor in state.items():
        assert after[name].dtype == tensor.dtype and after[name].shape == tensor.shape, name
        assert bits(after[name]) == bits(tensor), name


def test_a_model_written_in_the_published_format_is_read_as_the_same(tmp_path: Path) -> None:
    model = make_tiny_model(**WIDE)
    model.save_pretrained(tmp_path / "model")
    state = to_reference(tmp_path / "model", tmp_path / "out.pth")
    model.processor.tokenizer.save(tmp_path)
    again = load_model(tmp_path / "out.pth")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    words = state["text_encoder.cls.predictions.decoder.weight"]
    assert torch.equal(words, model.text_encoder.bert.embeddings.word_embeddings.weight)
    assert not any("_m." in name or "queue" in name for name in state)


def test_a_training_checkpoint_has_everything_the_published_code_goes_on_with(golden: Golden, tmp_path: Path) -> None:
    """The keys, dtypes and shapes are those that the published model has; teacher and queues are ours."""
    model = model_for(golden, "pretrain")
    model.processor = replace(make_tiny_model().processor, image_size=model.config.image_shape)
    teacher, queue = MomentumTeacher(model), FeatureQueue(16, 16)
    teacher.update(make_like(model), 0.9)
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    write_model(model, folder)
    torch.save({"teacher": teacher.state_dict(), "queue": queue.state_dict()}, folder / "train_state.pt")
    state = to_reference(folder, tmp_path / "out.pth")
    recorded = recorded_state(golden, "pretrain")
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == {
        n: (t.shape, t.dtype) for n, t in recorded.items()
    }
    assert torch.equal(state["vision_proj_m.weight"], teacher.model.vision_proj.weight)
    assert torch.equal(state["text_queue"], queue.text_queue)
    assert torch.equal(
        state["text_encoder.bert.embeddings.position_ids"], recorded["text_encoder.bert.embeddings.position_ids"]
    )
    with pytest.raises(CheckpointError, match=r"its teacher has visual_encoder.x.lora_a, .*low-rank"):
        reference_state(model.state_dict(), {"model.visual_encoder.x.lora_a": torch.zeros(1)})


def test_converting_never_replaces_anything_and_leaves_nothing_behind(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_pth(tmp_path / "in.pth", recorded_state(golden, "pretrain"))
    from_reference(path, tmp_path / "model")
    for convert in (
        lambda: from_reference(path, tmp_path / "model"),
        lambda: to_reference(tmp_path / "model", path),
        lambda: to_reference(tmp_path / "model", path / "out.pth"),
        lambda: from_reference(path, path / "model"),
    ):
        with pytest.raises(UsageError, match=r"exists|cannot be written"):
            convert()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("tcl.weights.convert.save_tensors", full)
    with pytest.raises(CheckpointError, match=r"out.pth: cannot be written: .*No space left"):
        to_reference(tmp_path / "model", tmp_path / "out.pth")
    with pytest.raises(CheckpointError, match=r"other: cannot be written: .*No space left"):
        from_reference(path, tmp_path / "other")
    assert sorted(tmp_path.iterdir()) == before


def test_what_was_kept_belongs_to_one_model(golden: Golden, tmp_path: Path) -> None:
    from_reference(write_pth(tmp_path / "in.pth", recorded_state(golden, "pretrain")), tmp_path / "model")
    extra = (tmp_path / "model" / EXTRA_FILE).read_bytes()
    (tmp_path / "model" / EXTRA_FILE).write_bytes(extra[:-9])
    with pytest.raises(CheckpointError, match=r"extra.safetensors: damaged"):
        to_reference(tmp_path / "model", tmp_path / "out.pth")
    (tmp_path / "model" / EXTRA_FILE).write_bytes(extra)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file(weights | {"temp": torch.tensor(0.5)}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"extra.safetensors: belongs to another model"):
        to_reference(tmp_path / "model", tmp_path / "out.pth")
