"""The model and the objective against what the published implementation computed (`golden/README.md`).

Tolerances are the fixtures' own: `|a - b| / (1 + |b|) <= 2e-5`, gradients 2e-4 of each tensor's largest entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tcl.config.recipe import ModelConfig, OptimConfig
from tcl.models.tcl import TCL, ImageOutput, TextOutput
from tcl.models.vision import resize_position_embeddings
from tcl.objective.losses import distilled_targets
from tcl.objective.momentum import FeatureQueue, MomentumTeacher
from tcl.objective.pretrain import PretrainLosses, PretrainObjective
from tcl.objective.sampling import MaskedTokens, negative_weights
from tcl.training.optim import build_optimizer, distillation_weight, learning_rate
from tcl.weights.layouts import NOT_THE_MODEL
from tests.plain_metrics import retrieval_metrics
from tests.published import rename_reference

MOMENTUM = 0.995


def close(actual: Tensor, expected: Tensor, name: str, tolerance: float = 2e-5) -> None:
    difference = ((actual - expected).abs() / (1 + expected.abs())).max().item()
    assert actual.shape == expected.shape, name
    assert difference <= tolerance, f"{name}: {difference:.2e}"


def pixels(image_u8: Tensor) -> Tensor:
    return (image_u8.float() - 128) / 64


def gradient_is_noise(name: str) -> bool:
    """Softmax ignores a shift of the keys: the gradient of these is zero but for rounding."""
    return name.endswith(".key.bias")


def mask_key_third(name: str, tensor: Tensor) -> Tensor:
    if not name.endswith("attn.qkv.bias"):
        return tensor
    third = len(tensor) // 3
    return torch.cat([tensor[:third], tensor[2 * third :]])


@dataclass
class Case:
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    model: TCL
    teacher: MomentumTeacher
    queue: FeatureQueue

    @property
    def objective(self) -> PretrainObjective:
        return PretrainObjective(self.model, self.teacher, self.queue).eval()

    def masked(self, place: str) -> MaskedTokens:
        labels = self.tensors[f"{place}/mlm_labels"].flatten()
        positions = (labels != -100).nonzero().squeeze(1)
        return MaskedTokens(self.tensors[f"{place}/mlm_input_ids"], positions, labels[positions])

    def forward(self, place: str = "draw") -> tuple[PretrainLosses, Tensor, Tensor]:
        t = self.tensors
        return self.objective(
            pixels(t["in/image_u8"]),
            pixels(t["in/image_aug_u8"]),
            t["in/input_ids"],
            t["in/attention_mask"].bool(),
            self.masked(place),
            float(t["in/alpha"]),
            negatives=(t[f"{place}/neg_image_idx"], t[f"{place}/neg_text_idx"]),
        )


def load_case(golden: Any, name: str) -> Case:
    tensors, values = golden(name)
    bert, sizes = values["bert_config"], values["sizes"]
    config = ModelConfig.model_validate(
        {
            "image_encoder": "vit_tiny_patch16_224",
            "image_encoder_args": {
                "patch_size": sizes["patch_size"],
                "embed_dim": values["config"]["vision_width"],
                "depth": sizes["vision_depth"],
                "num_heads": sizes["vision_heads"],
            },
            "image_size": values["config"]["image_res"],
            "text_encoder_args": {
                "hidden_size": bert["hidden_size"],
                "num_hidden_layers": bert["num_hidden_layers"],
                "num_attention_heads": bert["num_attention_heads"],
                "intermediate_size": bert["intermediate_size"],
                "max_position_embeddings": bert["max_position_embeddings"],
            },
            "pretrained": False,
            "fusion_layer": bert["fusion_layer"],
            "embed_dim": sizes["embed_dim"],
        }
    )
    state = {key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")}
    model = TCL.from_config(config, bert["vocab_size"]).eval()
    teacher = MomentumTeacher(model).eval()
    own = rename_reference(state)
    missing, unexpected = model.load_state_dict(own, strict=False)
    assert not unexpected and all(key.startswith("text_encoder.cls.") for key in missing)
    theirs = {key.replace("_m.", ".", 1): value for key, value in state.items() if key.partition(".")[0].endswith("_m")}
    missing, unexpected = teacher.model.load_state_dict(rename_reference(theirs), strict=False)
    assert not unexpected and all(key.startswith("text_encoder.cls.") for key in missing)
    queue = FeatureQueue(sizes["embed_dim"], sizes["queue_size"])
    queue.load_state_dict({key: state[key] for key in ("image_queue", "text_queue", "queue_ptr")})
    return Case(tensors, values, model, teacher, queue)


@pytest.fixture
def case(golden: Any) -> Case:
    """The pre-training case with the teacher moved, as at the start of the recorded forward."""
    case = load_case(golden, "pretrain")
    case.teacher.update(case.model, MOMENTUM)
    return case


@dataclass
class Encoded:
    image: ImageOutput
    text: TextOutput
    image_m: ImageOutput
    text_m: TextOutput


def encode(case: Case) -> Encoded:
    t, mask = case.tensors, case.tensors["in/attention_mask"].bool()
    return Encoded(
        case.model.encode_image(pixels(t["in/image_u8"])),
        case.model.encode_text(t["in/input_ids"], mask),
        case.teacher.model.encode_image(pixels(t["in/image_aug_u8"])),
        case.teacher.model.encode_text(t["in/input_ids"], mask),
    )


def test_every_recorded_key_has_a_place(case: Case) -> None:
    recorded = {key.removeprefix("state/") for key in case.tensors if key.startswith("state/")}
    own = set(case.model.state_dict())
    left_over = {key for key in recorded - own if not NOT_THE_MODEL.match(key)}
    assert own <= recorded and not left_over


def test_layer_norm_epsilons(case: Case) -> None:
    t = case.tensors
    close(case.model.visual_encoder.norm(t["probe/ln_in"]), t["probe/vit_norm"], "vit_norm")
    norm = case.model.text_encoder.bert.embeddings.LayerNorm
    close(norm(t["probe/ln_in"]), t["probe/bert_embeddings_LayerNorm"], "bert_embeddings_LayerNorm")
    recorded = {name: float(eps) for eps, names in case.values["layernorm_eps"].items() for name in names}
    ours = {name: m.eps for name, m in case.model.named_modules() if isinstance(m, torch.nn.LayerNorm)}
    assert ours == {name: eps for name, eps in recorded.items() if "_m." not in name}


@torch.no_grad()
def test_encoders_and_features(case: Case) -> None:
    t, encoded = case.tensors, encode(case)
    image_local, text_local = case.objective.local_features(encoded.image_m, encoded.text_m)
    for name, actual in {
        "image_embeds": encoded.image.image_embeds,
        "image_embeds_m": encoded.image_m.image_embeds,
        "text_embeds": encoded.text.text_embeds,
        "text_embeds_m": encoded.text_m.text_embeds,
        "image_feat": encoded.image.image_feat,
        "text_feat": encoded.text.text_feat,
        "image_feat_m": encoded.image_m.image_feat,
        "text_feat_m": encoded.text_m.text_feat,
        "image_feat_m_l": image_local,
        "text_feat_m_l": text_local,
    }.items():
        close(actual, t[f"mid/{name}"], name)


@torch.no_grad()
def test_similarities_targets_and_negative_weights(case: Case) -> None:
    t, encoded = case.tensors, encode(case)
    sims = case.objective.similarities(encoded.image, encoded.text, encoded.image_m, encoded.text_m)
    for name in ("i2t", "t2i", "i2i", "t2t", "i2t_m", "t2i_m"):
        close(getattr(sims, name), t[f"mid/sim_{name}"], name)
    positives = torch.eye(*sims.i2t.shape)
    for name, teacher_sims in (("i2t", sims.i2t_m), ("t2i", sims.t2i_m)):
        close(distilled_targets(teacher_sims, positives, 0.4), t[f"mid/sim_{name}_targets"], name)
    for name, own in (("i2t", sims.i2t), ("t2i", sims.t2i)):
        recorded = t[f"mid/weights_{name}"]  # not renormalised after the diagonal was cleared; the draw ignores that
        close(negative_weights(own[:, :4]), recorded / recorded.sum(dim=1, keepdim=True), name)


@torch.no_grad()
def test_fusion_itm_and_mlm_logits(case: Case) -> None:
    t, encoded, mask = case.tensors, encode(case), case.tensors["in/attention_mask"].bool()
    text = encoded.text.text_embeds
    model = case.model
    images = model.image_key_values(encoded.image.image_embeds)
    negative_image, negative_text = t["draw/neg_image_idx"], t["draw/neg_text_idx"]
    positive = model.fuse(text, mask, images)
    close(positive, t["mid/fusion_pos"], "fusion_pos")
    with_negative_image = model.fuse(text, mask, [image.select(negative_image) for image in images])
    with_negative_text = model.fuse(text[negative_text], mask[negative_text], images)
    close(torch.cat([with_negative_image, with_negative_text]), t["mid/fusion_neg"], "fusion_neg")
    states = torch.cat([positive, with_negative_image, with_negative_text])
    close(model.itm_head(states[:, 0]), t["mid/vl_output"], "vl_output")
    close(model.match(encoded.image, encoded.text), t["mid/vl_output"][:4], "match")

    for net, image, name in (
        (model, encoded.image, "mlm_logits"),
        (case.teacher.model, encoded.image_m, "mlm_logits_m"),
    ):
        masked = net.encode_text(t["draw/mlm_input_ids"], mask)
        fused = net.fuse(masked.text_embeds, mask, net.image_key_values(image.image_embeds))
        close(net.text_encoder.mlm_logits(fused), t[f"mid/{name}"], name)


def test_losses_and_gradients(case: Case) -> None:
    losses, _, _ = case.forward()
    for name, actual in {
        "loss_i2t": losses.cma_i2t,
        "loss_t2i": losses.cma_t2i,
        "loss_i2i": losses.imc_image,
        "loss_t2t": losses.imc_text,
        "loss_i2i_inMod_l": losses.lmi_image,
        "loss_t2t_inMod_l": losses.lmi_text,
        "loss_ita": losses.contrastive,
        "loss_itm": losses.itm,
        "loss_mlm": losses.mlm,
        "loss_total": losses.total,
    }.items():
        close(actual, case.tensors[f"out/{name}"], name)

    losses.total.backward()
    parameters = dict(case.model.named_parameters())
    assert {f"grad/{name}" for name in parameters} == {key for key in case.tensors if key.startswith("grad/")}
    for name, parameter in parameters.items():
        if gradient_is_noise(name):
            continue
        assert parameter.grad is not None, name
        actual, expected = (
            mask_key_third(name, gradient) for gradient in (parameter.grad, case.tensors[f"grad/{name}"])
        )
        assert (actual - expected).abs().max() <= 2e-4 * expected.abs().max(), name


def test_optimizer_groups(case: Case) -> None:
    config = OptimConfig(lr=1e-4, warmup_lr=1e-4)
    names = {parameter: name for name, parameter in case.model.named_parameters()}
    groups = build_optimizer(case.model, config).param_groups
    for ours, recorded in zip(groups, case.values["optimizer"]["groups"], strict=True):
        assert {names[parameter] for parameter in ours["params"]} == set(recorded["params"])
        assert ours["weight_decay"] == recorded["weight_decay"]
        assert list(ours["betas"]) == recorded["betas"] and ours["eps"] == recorded["eps"]


def test_state_after_one_and_four_steps(golden: Any) -> None:
    case = load_case(golden, "pretrain")
    t = case.tensors
    optimizer = build_optimizer(case.model, OptimConfig(lr=1e-4, warmup_lr=1e-4))

    def step(place: str) -> PretrainLosses:
        with torch.no_grad():
            case.model.temp.clamp_(0.001, 0.5)
        case.teacher.update(case.model, MOMENTUM)
        losses, image_feat, text_feat = case.forward(place)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        case.queue.enqueue(image_feat, text_feat)
        return losses

    step("draw")
    parameters = dict(case.model.named_parameters())
    compared = 0
    for key, expected in t.items():
        name = key.removeprefix("post/")
        if key.startswith("post/") and not gradient_is_noise(name):
            actual = parameters[name] if name in parameters else case.queue.state_dict()[name]
            close(mask_key_third(name, actual.float()), mask_key_third(name, expected.float()), name)
            compared += 1
    assert compared > 60
    state = {**parameters, **{_momentum_name(n): p for n, p in case.teacher.model.named_parameters()}}
    for name, (total, norm) in case.values["post_checksums"].items():
        if name in state and not gradient_is_noise(name) and not name.endswith("attn.qkv.bias"):
            actual = state[name].double()
            assert actual.sum().item() == pytest.approx(total, rel=2e-5, abs=2e-4), name
            assert actual.norm().item() == pytest.approx(norm, rel=2e-5), name

    for number in (1, 2, 3):
        losses = step(f"step{number}")
        actual = torch.stack([losses.mlm, losses.contrastive, losses.itm])
        close(actual, t[f"step{number}/losses_mlm_ita_itm"], f"step{number}")
    close(case.queue.image_queue, t["step_last/image_queue"], "image_queue")
    close(case.queue.text_queue, t["step_last/text_queue"], "text_queue")
    assert torch.equal(case.queue.queue_ptr, t["step_last/queue_ptr"])
    close(case.model.temp, t["step_last/temp"], "temp")
    close(case.model.itm_head.weight, t["step_last/itm_head_weight"], "itm_head.weight")
    close(case.teacher.model.vision_proj.weight, t["step_last/vision_proj_m_weight"], "vision_proj_m.weight")


def _momentum_name(name: str) -> str:
    module, dot, rest = name.partition(".")
    return f"{module}_m{dot}{rest}"


def test_position_embeddings(golden: Any) -> None:
    tensors, _ = golden("posembed")
    names = {key.partition("/")[0] for key in tensors}
    assert len(names) >= 5
    for name in names:
        side = int(name.partition("to")[2])
        close(resize_position_embeddings(tensors[f"{name}/src"], (side, side)), tensors[f"{name}/dst"], name)


@pytest.mark.parametrize(("job", "steps_per_epoch"), [("pretrain_250", 250), ("pretrain_2100", 2100)])
def test_published_schedule(golden: Any, job: str, steps_per_epoch: int) -> None:
    recorded = golden("schedule")[1][job]
    config = OptimConfig(lr=1e-4, warmup_lr=1e-5, min_lr=1e-5, warmup_steps=2000, schedule="published")
    total = 30 * steps_per_epoch
    runs = recorded["lr_runs"]
    ends = [run["first_step"] for run in runs[1:]] + [total]
    for run, end in zip(runs, ends, strict=True):
        for step in (run["first_step"], end - 1):
            assert learning_rate(step, config, steps_per_epoch, total) == pytest.approx(run["lr"], rel=1e-9), step
    for sample in recorded["alpha_samples"]:
        assert distillation_weight(sample["step"], 0.4, steps_per_epoch) == pytest.approx(sample["alpha"])


@torch.no_grad()
def test_retrieval_features_and_similarities(golden: Any) -> None:
    case = load_case(golden, "retrieval")
    t = case.tensors
    small = t["eval/image_quarter_u8"]
    images = case.model.encode_image(pixels(small.repeat_interleave(4, -1).repeat_interleave(4, -2)))
    texts = case.model.encode_text(t["eval/input_ids"], t["eval/attention_mask"])
    close(images.image_feat, t["eval/image_feat"], "image_feat")
    close(texts.text_feat, t["eval/text_feat"], "text_feat")
    sims = images.image_feat @ texts.text_feat.T
    close(sims, t["eval/sims_i2t"], "sims")


def test_retrieval_metric_alone(golden: Any) -> None:
    tensors, values = golden("retrieval")
    scores = {key: tensor.numpy() for key, tensor in tensors.items() if key.startswith("metric/scores_")}
    score_i2t, score_t2i = scores["metric/scores_i2t"], scores["metric/scores_t2i"]
    image_of_text = torch.arange(len(score_i2t)).repeat_interleave(len(score_t2i) // len(score_i2t)).numpy()
    _same_metrics(retrieval_metrics(score_i2t, score_t2i, image_of_text), values["metric_result"])


def _same_metrics(actual: dict[str, float], recorded: dict[str, float]) -> None:
    published = {
        f"{ours}_r{k}": recorded[f"{theirs}_r{k}"]
        for ours, theirs in (("i2t", "txt"), ("t2i", "img"))
        for k in (1, 5, 10)
    }
    assert {name: actual[name] for name in published} == pytest.approx(published)
