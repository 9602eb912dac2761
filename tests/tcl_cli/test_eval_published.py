"""Published fine-tuned checkpoints of VQA, entailment and NLVR2: `tcl eval`, `tcl inspect` and `tcl convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tcl.models.build import attach_head
from tcl.models.heads import HeadConfig
from tcl.models.task_model import NOT_TRAINED, TaskModel
from tcl.weights.load import load_model
from tests.conftest import make_tiny_model
from tests.published import WIDE, recorded_state, write_pth
from tests.tasks.cases import close, pixels
from tests.tcl_cli.fine_tuned import read_lines, write_rows

LABELS = {
    "entailment": ["contradiction", "neutral", "entailment"],
    "nlvr2": ["False", "True"],
    "vqa": ["red", "blue", "two"],
}
ROWS = {
    "entailment": {"image": "images/1.png", "text": "a red circle", "label": "neutral"},
    "nlvr2": {"images": ["images/1.png", "images/2.png"], "text": "two dogs", "label": "True"},
    "vqa": {"image": "images/1.png", "question": "what colour?", "answer": "red", "question_id": 1},
}


def published(task: str) -> TaskModel:
    """A model whose weights `task`.pth holds in the layout of the published code."""
    head = {"task": task, "labels": LABELS[task]} | ({"decoder_layers": 2} if task == "vqa" else {})
    base = make_tiny_model(**{key: WIDE[key] for key in ("image_encoder_args", "text_encoder_args")})
    model = attach_head(base, HeadConfig.model_validate(head)).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(NOT_TRAINED)}
    state = {name.replace("text_encoder.bert.", "text_encoder."): tensor for name, tensor in state.items()}
    for layer in (3, 5) if task == "nlvr2" else ():  # the file holds shared keys and values twice
        for part in ("key.weight", "key.bias", "value.weight", "value.bias"):
            name = "text_encoder.encoder.layer.{}.crossattention.self." + part
            state[name.format(layer)] = state[name.format(layer - 1)]
    teacher = {name.replace(".", "_m.", 1): tensor + 1 for name, tensor in state.items()}
    write_pth(Path(f"{task}.pth"), state | teacher, epoch=3)
    Path("vocab.txt").unlink()
    model.processor.tokenizer.save(Path())
    return model


@pytest.mark.parametrize("task", ["entailment", "nlvr2", "vqa"])
def test_they_answer_their_task(workplace: Path, tcl: Any, task: str) -> None:
    published(task).save_pretrained("own")
    data = write_rows("rows.jsonl", [ROWS[task]])
    answers: list[str] = []
    if task == "vqa":
        result = tcl("eval", task, "--model", "vqa.pth", "--data", data)
        assert result.code == 2 and "holds no answers" in result.stderr and "answer_list.json" in result.stderr
        Path("answers.json").write_text(json.dumps(LABELS[task]))
        answers = ["--answers", "answers.json"]
    said = {}
    for model, options in (("own", []), (f"{task}.pth", answers)):
        result = tcl("eval", task, "--model", model, "--data", data, "--predictions", "said.jsonl", *options)
        assert result.code == 0, result.stderr
        said[model] = result.stdout, read_lines("said.jsonl")
    assert said["own"] == said[f"{task}.pth"]
    if task == "vqa":
        Path("answers.json").rename("answer_list.json")
        tcl("eval", task, "--model", "vqa.pth", "--data", data, "--predictions", "said.jsonl")
        assert read_lines("said.jsonl") == said["own"][1]
    other = "nlvr2" if task == "entailment" else "entailment"
    result = tcl("eval", other, "--model", f"{task}.pth", "--data", write_rows("rows.jsonl", [ROWS[other]]))
    assert result.code == 2 and f"no classification head (cls_head) for {other}: it was fine-tuned" in result.stderr
    result = tcl("eval", "retrieval", "--model", f"{task}.pth", "--data", "scenes:val:3")
    assert result.code == 1 and "which lacks parts of the model" in result.stderr


@pytest.mark.parametrize("task", ["entailment", "nlvr2", "vqa"])
def test_they_are_inspected_and_converted(workplace: Path, tcl: Any, task: str) -> None:
    model = published(task)
    values = json.loads(tcl("inspect", f"{task}.pth", "--json").stdout)
    assert values["architecture"]["task"] == task and values["problem"] is None and not values["keys"]["unknown"]
    if task == "vqa":
        assert values["architecture"]["labels"] == "unknown: no answer_list.json beside it"
        Path("answer_list.json").write_text(json.dumps(LABELS[task]))
        values = json.loads(tcl("inspect", "vqa.pth", "--json").stdout)
    assert values["architecture"]["labels"] == len(LABELS[task])
    head = "text_decoder.cls.predictions.bias" if task == "vqa" else "cls_head.2.weight"
    assert head in values["keys"]["loaded"]
    assert all(why for why in values["keys"]["unused"].values()) and values["parameters"]["total"] > 0
    result = tcl("convert", f"{task}.pth", "converted")
    assert result.code == 0, result.stderr
    converted: Any = load_model("converted")
    assert converted.head == model.head
    ours, theirs = model.state_dict(), converted.state_dict()
    assert all(name.startswith(NOT_TRAINED) or torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    tcl("convert", f"{task}.pth", "again")
    assert load_model("again").model_hash == converted.model_hash


def test_recorded_predictions_of_a_converted_checkpoint(workplace: Path, tcl: Any, golden: Any) -> None:
    """Published heads are 64 wide, those of the recorded model are not: the folder has to be told."""
    tensors, values = golden("ve")
    write_pth(Path("ve.pth"), recorded_state(golden, "ve"))
    assert tcl("convert", "ve.pth", "ve").code == 0
    config = json.loads(Path("ve/config.json").read_text())
    config["model"]["text_encoder_args"]["num_attention_heads"] = values["bert_config"]["num_attention_heads"]
    config["model"]["image_encoder_args"]["num_heads"] = values["sizes"]["vision_heads"]
    Path("ve/config.json").write_text(json.dumps(config))
    model: Any = load_model("ve")
    with torch.no_grad():
        image_embeds = model.encode_image(pixels(tensors["in/image_u8"])).image_embeds
        text = tensors["in/input_ids"], tensors["in/attention_mask"].bool()
        close(model.classify(model.image_key_values(image_embeds), *text), tensors["out/prediction"], "prediction")


def test_a_pretrained_checkpoint_lacks_the_head(workplace: Path, tcl: Any, golden: Any) -> None:
    write_pth(Path("TCL_4M.pth"), recorded_state(golden, "pretrain"))
    result = tcl("eval", "entailment", "--model", "TCL_4M.pth", "--data", write_rows("a.jsonl", [ROWS["entailment"]]))
    assert result.code == 2 and "TCL_4M.pth has no classification head (cls_head) for entailment" in result.stderr
    assert "tcl finetune entailment --model TCL_4M.pth" in result.stderr
