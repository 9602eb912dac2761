"""Visual question answering: a decoder that reads the fused states of a question and writes, or scores, answers.

Letters: B questions, S tokens of a question, A answers, T tokens of an answer, V vocabulary, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tcl.models.attention import KeyValue
from tcl.models.bert import Bert, BertForMaskedLM
from tcl.models.heads import HeadConfig
from tcl.models.task_model import TaskModel
from tcl.models.tcl import TCL


class AskedQuestions(NamedTuple):
    """Questions, fused with their images: what the decoder needs of them, computed once for all their answers."""

    key_values: list[KeyValue]  # of each decoder layer, [B, H, S, Dh]
    mask: Tensor  # bool [B, S]

    def select(self, rows: Tensor) -> AskedQuestions:
        """The same for the questions `rows`."""
        return AskedQuestions([layer.select(rows) for layer in self.key_values], self.mask[rows])


class VqaModel(TaskModel):
    """TCL with `text_decoder`, which attends to the fused states of the question in every layer."""

    text_decoder: BertForMaskedLM

    def __init__(self, base: TCL, head: HeadConfig) -> None:
        super().__init__(base, head)
        if isinstance(base, VqaModel) and base.head.decoder_layers == head.decoder_layers:
            self.text_decoder = base.text_decoder
        else:
            self.text_decoder = self._new_decoder().to(self.device)

    def _new_decoder(self) -> BertForMaskedLM:
        text, encoder = self.config.text_encoder_args, self.text_encoder
        bert = Bert(
            vocab_size=encoder.bert.embeddings.word_embeddings.num_embeddings,
            width=text.hidden_size,
            num_layers=self.head.decoder_layers,
            num_heads=text.num_attention_heads,
            intermediate_width=text.intermediate_size,
            max_positions=text.max_position_embeddings,
            fusion_layer=0,
            image_width=text.hidden_size,
            dropout=text.dropout,
            eps=text.layer_norm_eps,
        )
        decoder = BertForMaskedLM(bert)
        wanted = decoder.state_dict()
        state = decoder_state(encoder.state_dict(), encoder.bert.fusion_layer)
        # Left as they are: layers beyond the fusion layers, and keys and values where images have another width.
        fits = {name: tensor for name, tensor in state.items() if name in wanted and tensor.shape == wanted[name].shape}
        decoder.load_state_dict(fits, strict=False)
        return decoder

    def ask(
        self, images: list[KeyValue], input_ids: Tensor, attention_mask: Tensor, image_of_question: Tensor | None = None
    ) -> AskedQuestions:
        """Fuse B questions with their images.

        Args:
            images: of `image_key_values`.
            input_ids: int64 [B, S].
            attention_mask: bool [B, S].
            image_of_question: int64 [B, 1]; without it, question b is about image b.
        """
        text = self.encode_text(input_ids, attention_mask)
        states = self.fuse_images(images, text, image_of_question)
        return AskedQuestions(self.text_decoder.bert.image_key_values(states), text.attention_mask)

    def decode(self, answer_ids: Tensor, question: AskedQuestions) -> Tensor:
        """Decoder states [A, T, D] of answers [A, T]; A is a multiple of B, row a answers question a % B."""
        return self.text_decoder.bert.decode(answer_ids, *question)

    def log_likelihood(self, states: Tensor, tokens: Tensor) -> Tensor:
        """Log-probability [M] of the token that follows each of M decoder states [M, D], in float32."""
        logits = self.text_decoder.mlm_logits(states).float()
        return -torch.nn.functional.cross_entropy(logits, tokens, reduction="none")


def decoder_state(encoder: dict[str, Tensor], fusion_layer: int) -> dict[str, Tensor]:
    """What an answer decoder starts from, as published: fusion layers, embeddings and MLM head.

    Args:
        encoder: weights of a text encoder with MLM head, `bert. ...` and `cls. ...`.
        fusion_layer: its layer that becomes layer 0.
    """
    state = {}
    for name, tensor in encoder.items():
        parts = name.split(".")
        if parts[:3] == ["bert", "encoder", "layer"]:
            parts[3] = str(int(parts[3]) - fusion_layer)
            if int(parts[3]) < 0:
                continue
        state[".".join(parts)] = tensor
    return state
