"""A LLaMA that judges a whole text: one score for each label.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size, ``L`` num_labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.llama import LlamaModel
from bpe_llama.model.pretrained import Pretrained


@dataclass
class SequenceClassifierOutput:
    """What a classifier returns: ``logits`` (B, L) and, where labels were given, the mean ``loss``."""

    logits: Tensor
    loss: Tensor | None = None


class LlamaForSequenceClassification(Pretrained):
    """Scores a text by the hidden state of its last token, the only one that has seen all of it.

    ``from_pretrained`` also takes a causal LM's folder, to be trained further: ``num_labels=3`` says how many labels
    there are to be, and a warning that their scores are drawn afresh.

    Example:
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, num_labels=3, pad_token_id=0)
        >>> LlamaForSequenceClassification(config)(torch.tensor([[5, 7, 0], [5, 7, 9]])).logits.shape
        torch.Size([2, 3])
    """

    NEW_HEAD = ("score.weight",)

    def build(self, config: LlamaConfig) -> None:
        """Make the modules; their weights are set later."""
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Return a score for each label and, given labels, the loss.

        Args:
            input_ids: int64 (B, T), padded on either side.
            attention_mask: (B, T), zero where a column is padding; by default, where the id is the config's padding.
            labels: For regression float (B,) or (B, L); for one label of several int64 (B,); for several at once
                float (B, L). The kind is the config's ``problem_type``, or else follows from the labels.

        Raises:
            ValueError: If a text is all padding, several texts come with no way to tell padding, or labels have another
                shape or are out of range.
            TypeError: If labels that name one of several are not int64.
        """
        if attention_mask is None:
            padding = self.config.pad_token_id
            if padding is None and input_ids.shape[0] > 1:
                raise ValueError("several texts need an attention_mask or a pad_token_id in the config")
            attention_mask = torch.ones_like(input_ids) if padding is None else (input_ids != padding).long()
        present_BT = attention_mask.bool()
        empty = (~present_BT.any(-1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"rows {empty} are all padding; there is no token to judge by")
        hidden_BTD = self.model(input_ids, attention_mask)
        last_B = (torch.arange(input_ids.shape[1], device=input_ids.device) * present_BT).argmax(-1)
        logits_BL = self.score(hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B])
        return SequenceClassifierOutput(logits_BL, None if labels is None else self._loss(logits_BL, labels))

    def _loss(self, logits_BL: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind is None:
            several = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
            kind = "regression" if self.config.num_labels == 1 else several
        batch, count = logits_BL.shape
        one_each = kind == "single_label_classification"
        shapes = [(batch,)] if one_each else [(batch, count)] + [(batch,)] * (kind == "regression" and count == 1)
        if tuple(labels.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"labels of {kind!r} have shape {tuple(labels.shape)}; expected {expected}")
        if kind == "regression":
            return functional.mse_loss(logits_BL.float().view(labels.shape), labels.float())
        if kind == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits_BL.float(), labels.float())
        if labels.dtype != torch.long:
            raise TypeError(f"labels of {kind!r} have dtype {labels.dtype}; expected int64")
        wrong = labels[(labels < 0) | (labels >= count)]
        if wrong.numel():
            raise ValueError(f"label {int(wrong[0])} is not among the {count} labels")
        return functional.cross_entropy(logits_BL.float(), labels)
