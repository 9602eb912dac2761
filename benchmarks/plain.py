"""The published formulas, written down one after another: what the speed and memory of our step are compared with.

Every formula stands as in the paper and its published code: attention as two products and a softmax, a forward pass for
each use of the fusion encoder, word logits at every position, local mutual information over an expanded matrix,
negatives drawn in a loop, a moving average into new memory. `tests/test_benchmarks.py` compares it with the recorded
losses and gradients. The weights are those of a `TCL` model, of which only parameters and the plainest layers are used.

Letters: B pairs, S tokens, N image tokens, E feature width, L local features, Q queue.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl.models.tcl import TCL
from tcl.objective.momentum import FeatureQueue, MomentumTeacher

IGNORED = -100  # label of a word that is not to be predicted


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """`softmax(Q K^T / sqrt(d) + mask) V` of heads [R, H, S, Dh]."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + mask
    return F.dropout(scores.softmax(dim=-1), dropout) @ value


def vision_tokens(vit: Any, pixels: Tensor) -> Tensor:
    """A Vision Transformer: normalised pixels [B, 3, H, W] to token states [B, N, D]."""
    patches = vit.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([vit.cls_token.expand(len(patches), -1, -1), patches], dim=1) + vit.pos_embed
    for block in vit.blocks:
        size, length, width = x.shape
        qkv = block.attn.qkv(block.norm1(x)).reshape(size, length, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = attention(qkv[0], qkv[1], qkv[2], None, 0.0).transpose(1, 2).reshape(size, length, width)
        x = x + block.attn.proj(attended)
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return vit.norm(x)


def attend(module: Any, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    """A BERT attention sub-layer: `x` [R, S, D] to `context` [R, N, Dc]."""
    heads = [
        projection(states).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for projection, states in ((module.self.query, x), (module.self.key, context), (module.self.value, context))
    ]
    dropout = module.dropout if module.training else 0.0
    return module.output(attention(heads[0], heads[1], heads[2], mask, dropout).transpose(1, 2).flatten(2), x)


def bert_layers(layers: Any, x: Tensor, attention_mask: Tensor, image_embeds: Tensor | None = None) -> Tensor:
    """Layers of BERT; with `image_embeds` [R, N, Dv] each one also attends to the image of its row."""
    mask = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
    for layer in layers:
        x = attend(layer.attention, x, x, mask)
        if image_embeds is not None:
            x = attend(layer.crossattention, x, image_embeds, None)
        x = layer.output(F.gelu(layer.intermediate.dense(x)), x)
    return x


def text_states(net: TCL, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The text encoder [R, S] to [R, S, D]."""
    bert = net.text_encoder.bert
    return bert_layers(bert.encoder.layer[: bert.fusion_layer], bert.embeddings(input_ids), attention_mask)


def fused_states(net: TCL, text_embeds: Tensor, attention_mask: Tensor, image_embeds: Tensor) -> Tensor:
    """The fusion encoder [R, S, D]; row r goes with image r."""
    bert = net.text_encoder.bert
    return bert_layers(bert.encoder.layer[bert.fusion_layer :], text_embeds, attention_mask, image_embeds)


def local_mutual_information(local: Tensor, anchor: Tensor, temperature: Tensor, mask: Tensor | None = None) -> Tensor:
    """Local features [B, L, E] against the global features [B, E]: one row of 1 + B L candidates for each local."""
    size, length, _ = local.shape
    positive = (local @ anchor[:, :, None]) / temperature  # [B, L, 1]
    negative = (anchor @ local.reshape(size * length, -1).T / temperature).reshape(size, size, length)
    hidden = torch.eye(size, dtype=torch.bool)[:, :, None].expand(-1, -1, length)
    if mask is not None:
        hidden = hidden | ~mask[None]
    negative = negative.masked_fill(hidden.to(negative.device), -1e9)
    negative = negative.reshape(size, 1, size * length).expand(-1, length, -1)  # the same for each local of the sample
    loss = -torch.cat([positive, negative], dim=2).log_softmax(dim=2)[:, :, 0]
    if mask is None:
        return loss.mean()
    return ((loss * mask).sum(dim=1) / mask.sum(dim=1)).mean()


def pool(patches: Tensor) -> Tensor:
    """Patches [B, n * n, E], n * n a fourth power, averaged to sqrt(n) x sqrt(n) cells."""
    side = math.isqrt(patches.shape[1])
    cell = math.isqrt(side)
    grid = patches.transpose(1, 2).reshape(len(patches), -1, side, side)
    return F.avg_pool2d(grid, cell, stride=cell).flatten(2).transpose(1, 2)


def move_teacher(model: TCL, teacher: TCL, momentum: float) -> None:
    """`m = momentum m + (1 - momentum) p`, each into new memory."""
    online = dict(model.named_parameters())
    for name, average in teacher.named_parameters():
        average.data = average.data * momentum + online[name].data * (1.0 - momentum)


class PlainObjective(nn.Module):
    """The losses of a batch and the teacher's features for the queue."""

    def __init__(self, model: TCL, teacher: MomentumTeacher, queue: FeatureQueue) -> None:
        super().__init__()
        self.model = model
        self.teacher = teacher.model
        self.queue = queue

    def forward(
        self,
        images: Tensor,
        images_aug: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        masked_ids: Tensor,
        mlm_labels: Tensor,
        alpha: float,
        negatives: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Section 3 of the paper from top to bottom.

        Args:
            images: normalised pixels of the first view [B, 3, H, W]; `images_aug` of the second, for the teacher.
            input_ids: [B, S]; `masked_ids` with words to predict, `mlm_labels` what they were, else `IGNORED`.
            negatives: an image for each text and a text for each image, instead of drawing them [B].
        """
        model, teacher, temperature = self.model, self.teacher, self.model.temp
        image_embeds = vision_tokens(model.visual_encoder, images)
        text_embeds = text_states(model, input_ids, attention_mask)
        image_feat = F.normalize(model.vision_proj(image_embeds[:, 0]), dim=-1)
        text_feat = F.normalize(model.text_proj(text_embeds[:, 0]), dim=-1)
        with torch.no_grad():
            image_embeds_m = vision_tokens(teacher.visual_encoder, images_aug)
            text_embeds_m = text_states(teacher, input_ids, attention_mask)
            image_feats_m = F.normalize(teacher.vision_proj(image_embeds_m), dim=-1)
            text_feats_m = F.normalize(teacher.text_proj(text_embeds_m), dim=-1)
            image_feat_m, text_feat_m = image_feats_m[:, 0], text_feats_m[:, 0]
            image_all = torch.cat([image_feat_m.T, self.queue.image_queue.clone()], dim=1)
            text_all = torch.cat([text_feat_m.T, self.queue.text_queue.clone()], dim=1)
            hard = torch.zeros(len(images), image_all.shape[1], device=images.device).fill_diagonal_(1)
            targets_i2t = alpha * (image_feat_m @ text_all / temperature).softmax(dim=1) + (1 - alpha) * hard
            targets_t2i = alpha * (text_feat_m @ image_all / temperature).softmax(dim=1) + (1 - alpha) * hard

        sim_i2t, sim_t2i = image_feat @ text_all / temperature, text_feat @ image_all / temperature
        sim_i2i, sim_t2t = image_feat @ image_all / temperature, text_feat @ text_all / temperature
        contrast = [
            -(sim.log_softmax(dim=1) * targets).sum(dim=1).mean()
            for sim, targets in ((sim_i2t, targets_i2t), (sim_t2i, targets_t2i), (sim_i2i, hard), (sim_t2t, hard))
        ]
        contrast.append(local_mutual_information(pool(image_feats_m[:, 1:]), image_feat, temperature))
        words = attention_mask[:, 1:].bool()
        contrast.append(local_mutual_information(text_feats_m[:, 1:], text_feat, temperature, words))

        negatives = negatives or draw_negatives(sim_i2t, sim_t2i)
        itm = self._itm(image_embeds, text_embeds, attention_mask, *negatives)
        mlm = self._mlm(image_embeds, image_embeds_m, masked_ids, attention_mask, mlm_labels, alpha)
        losses = {"contrastive": sum(contrast) / 6, "itm": itm, "mlm": mlm}
        return {**losses, "loss": losses["contrastive"] + itm + mlm}, image_feat_m, text_feat_m

    def _itm(
        self, image_embeds: Tensor, text_embeds: Tensor, mask: Tensor, image_of_text: Tensor, text_of_image: Tensor
    ) -> Tensor:
        positive = fused_states(self.model, text_embeds, mask, image_embeds)
        images = torch.stack([image_embeds[i] for i in image_of_text])
        texts = torch.stack([text_embeds[i] for i in text_of_image])
        masks = torch.stack([mask[i] for i in text_of_image])
        negative = fused_states(
            self.model, torch.cat([text_embeds, texts]), torch.cat([mask, masks]), torch.cat([images, image_embeds])
        )
        logits = self.model.itm_head(torch.cat([positive[:, 0], negative[:, 0]]))
        labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).long()
        return F.cross_entropy(logits, labels.to(logits.device))

    def _mlm(
        self, image_embeds: Tensor, image_embeds_m: Tensor, ids: Tensor, mask: Tensor, labels: Tensor, alpha: float
    ) -> Tensor:
        logits = self._word_logits(self.model, ids, mask, image_embeds)
        with torch.no_grad():
            targets = self._word_logits(self.teacher, ids, mask, image_embeds_m).softmax(dim=-1)
        hard = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        soft = -(logits.log_softmax(dim=-1) * targets).sum(dim=-1)
        return (1 - alpha) * hard + alpha * soft[labels != IGNORED].mean()

    def _word_logits(self, net: TCL, ids: Tensor, mask: Tensor, image_embeds: Tensor) -> Tensor:
        states = fused_states(net, text_states(net, ids, mask), mask, image_embeds)
        head = net.text_encoder.cls.predictions
        words = net.text_encoder.bert.embeddings.word_embeddings.weight
        return F.linear(head.transform(states), words, head.bias)


@torch.no_grad()
def draw_negatives(sim_i2t: Tensor, sim_t2i: Tensor) -> tuple[Tensor, Tensor]:
    """An image for each text, then a text for each image, one draw after another."""
    size = len(sim_i2t)
    drawn = []
    for sim in (sim_t2i, sim_i2t):
        weights = sim[:, :size].softmax(dim=1).fill_diagonal_(0)
        drawn.append(torch.tensor([int(torch.multinomial(weights[row], 1).item()) for row in range(size)]))
    return drawn[0], drawn[1]
