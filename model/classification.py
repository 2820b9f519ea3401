"""A LLaMA for sequence classification: one score per label.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size, ``L`` num_labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama._arguments import instance, iterator
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.llama import LlamaForCausalLM, LlamaModel
from bpe_llama.model.pretrained import Pretrained


@dataclass
class SequenceClassifierOutput:
    """The output of a classifier: ``logits`` (B, L) and, if labels were given, the mean ``loss``, float32."""

    logits: Tensor
    loss: Tensor | None = None


class LlamaForSequenceClassification(Pretrained):
    """Classifies a sequence by the hidden state of its last token that is not the config's ``pad_token_id``.

    ``from_pretrained`` also loads the folder of a causal LM; it then initializes the head, which needs training, and
    warns. ``num_labels=3`` sets the number of labels.

    Example:
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, num_labels=3, pad_token_id=0)
        >>> LlamaForSequenceClassification(config)(torch.tensor([[5, 7, 0], [5, 7, 9]])).logits.shape
        torch.Size([2, 3])
    """

    NEW_HEAD = ("score.weight",)

    def build(self, config: LlamaConfig) -> None:
        """Create the modules; their weights are initialized later."""
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    @classmethod
    def from_causal_lm(
        cls, model: LlamaForCausalLM, labels: Sequence[str], *, pad_token_id: int | None = None, seed: int = 0
    ) -> LlamaForSequenceClassification:
        """Return a classifier with the decoder of a causal LM, which it shares, and a new head, which needs training.

        Args:
            model: The causal LM, loaded from any format, quantized or not.
            labels: The names of the labels.
            pad_token_id: The id that pads texts, of the config; None keeps the model's.
            seed: Seed of the head.

        Raises:
            TypeError: If the model is no `LlamaForCausalLM`, or ``labels`` is a text or no collection.
            ValueError: If there are fewer than 2 labels, or two of one name.

        Example:
            >>> from bpe_llama.model import LlamaForCausalLM
            >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            ...                      num_attention_heads=2)
            >>> judge = LlamaForSequenceClassification.from_causal_lm(LlamaForCausalLM(config), ["no", "yes"])
            >>> judge.score.weight.shape, judge.config.label_names
            (torch.Size([2, 16]), ['no', 'yes'])
        """
        instance("model", model, LlamaForCausalLM)
        labels = list(iterator("labels", labels, "a list of names"))
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ValueError(f"labels are {labels!r:.200}; expected at least 2 different ones")
        config = model.config.replace(
            id2label=dict(enumerate(labels)),
            num_labels=len(labels),
            problem_type="single_label_classification",
            pad_token_id=model.config.pad_token_id if pad_token_id is None else pad_token_id,
        )
        classifier = cls(config, device="meta", dtype=model.dtype)
        classifier.model = model.model
        classifier.model.config = config
        classifier.score.to_empty(device=model.device)
        classifier.reset_parameters(seed, only=cls.NEW_HEAD)
        if "adapter_configs" in vars(model):  # of the adapters in its decoder
            vars(classifier)["adapter_configs"] = dict(vars(model)["adapter_configs"])
        return classifier.train(model.training)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Return the score of each label and, given labels, the loss.

        Args:
            input_ids: int64 (B, T), padded on either side.
            attention_mask: (B, T), zero for padding; by default zero where the id is the config's ``pad_token_id``.
            labels: For regression float (B,) or (B, L); for single-label classification int64 (B,); for multi-label
                classification float (B, L). The config's ``problem_type`` decides, or else the labels' dtype.

        Raises:
            ValueError: If a row is all padding, a batch has neither mask nor ``pad_token_id``, or labels have another
                shape or are out of range.
            TypeError: If an argument is no tensor, or labels of single-label classification are not int64.
        """
        for name, tensor in (("input_ids", input_ids), ("attention_mask", attention_mask), ("labels", labels)):
            if tensor is not None or name == "input_ids":
                instance(name, tensor, Tensor, "a tensor")
        padding = self.config.pad_token_id
        if attention_mask is None:
            if padding is None and input_ids.shape[0] > 1:
                raise ValueError("several texts need an attention_mask or a pad_token_id in the config")
            attention_mask = torch.ones_like(input_ids) if padding is None else (input_ids != padding).long()
        present_BT = attention_mask.bool()
        empty = (~present_BT.any(-1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"rows {empty} are all padding; there is no token to classify")
        hidden_BTD = self.model(input_ids, attention_mask)
        if padding is not None:
            present_BT = present_BT & (input_ids != padding)  # as in transformers, even if the mask keeps it
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
