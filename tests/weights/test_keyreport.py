"""Every key of file and model is accounted for, and names follow the published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tcl.weights.initialize import initialise
from tcl.weights.keyreport import account
from tcl.weights.layouts import TWIN_LAYER, Layout, layout_of, recognise
from tests.published import (
    Golden,
    check_accounted,
    model_for,
    recorded_state,
    write_pth,
)


def test_names_follow_the_published_remapping(golden: Golden) -> None:
    """At the real depth of 12 layers: what the published scripts rename to, this package reads as the same weights."""
    scripts = golden("remap")[1]["scripts"]
    pretraining, retrieval = Layout("pre-training"), Layout("retrieval", bare=True)
    compared = 0
    for target, source in scripts["Retrieval"]["renamed"].items():
        name = source.removeprefix("interpolated:")
        assert retrieval.place(target) == pretraining.place(name), target
        compared += retrieval.place(target).target is not None
    assert compared == 6 * 16 + 6 * 26 + 5 + 1  # text and fusion layers, embeddings, positions of patches

    paired = Layout("text assignment", bare=True, first_pair=6)
    odd = 0
    for target, source in scripts["Pretrain_nlvr"]["renamed"].items():
        if paired.place(target).why == TWIN_LAYER:
            odd += 1
        else:
            assert paired.place(target) == pretraining.place(source), target
    assert odd == 6 * 26


def test_what_a_file_is_shows_in_its_keys(golden: Golden) -> None:
    assert layout_of(recorded_state(golden, "nlvr")) == Layout("NLVR2", bare=True, first_pair=6)
    assert recognise(["patch_embed.proj.weight", "pos_embed"]) == Layout("ViT")
    assert recognise(["bert.embeddings.word_embeddings.weight"]) == Layout("BERT")
    assert recognise(["state", "epoch"]) is None and recognise([]) is None


KEYS = [
    "temp", "vision_proj.weight", "vision_proj_m.weight", "image_queue", "itm_head.bias", "visual_encoder.pos_embed",
    "visual_encoder.blocks.0.attn.qkv.weight", "text_encoder.bert.embeddings.LayerNorm.weight", "cls_head.0.weight",
    "text_encoder.embeddings.LayerNorm.weight", "text_encoder.embeddings.position_ids", "whatever", "text_encoder.x",
    "text_encoder.encoder.layer.7.output.dense.bias", "text_encoder.cls.predictions.decoder.weight",
    "bert.encoder.layer.0.output.LayerNorm.gamma", "encoder.layer.0.output.LayerNorm.weight", "pooler.dense.bias",
    "head.weight", "norm.weight", "pos_embed", "",
]  # fmt: skip
SHAPES = st.sampled_from([(), (4,), (1, 17, 8), (1, 5, 8), (1, 6, 8), (2, 2)])
LAYOUTS = [
    Layout("pre-training"), Layout("retrieval", bare=True), Layout("NLVR2", bare=True, first_pair=6), Layout("BERT"),
    Layout("ViT"), Layout("model"),
]  # fmt: skip


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(KEYS), SHAPES),
    st.dictionaries(st.sampled_from(KEYS), SHAPES),
    st.sampled_from(LAYOUTS),
)
def test_every_key_is_in_exactly_one_class(theirs: Any, ours: Any, layout: Layout) -> None:
    report = account("x", layout.kind, theirs, ours, layout.place)
    check_accounted(report, set(theirs), set(ours))
    assert sum(report.counts().values()) == len(list(report.rows()))
    assert json.loads(json.dumps(report.to_dict()))["missing"].keys() == report.missing.keys()
    assert report.lines()[0] == report.summary()


def test_a_report_for_people(golden: Golden, tmp_path: Path) -> None:
    model = model_for(golden, "retrieval", image_size=256)
    lines = initialise(model, str(write_pth(tmp_path / "coco.pth", recorded_state(golden, "retrieval")))).lines()
    assert lines[0] == f"{tmp_path / 'coco.pth'} (retrieval): 36 loaded, 89 remapped, 1 resized, 5 missing, 129 unused"
    text = "\n".join(lines)
    assert "resized: visual_encoder.pos_embed [1, 65, 16] -> [1, 257, 16]" in text
    assert "unused, the momentum teacher; training starts one as a copy of the model: " in text
    assert "visual_encoder_m.* (30 keys)" in text and "idx_queue" in text
