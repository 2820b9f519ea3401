"""Distillation: a loss that teaches a model the next-token distribution of another, its teacher.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size, ``V`` vocab_size, ``M`` positions with a next token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from bpe_llama._arguments import integer, number
from bpe_llama._core import shown
from bpe_llama.model.layers.loss import IGNORED, check_labels, labels_within_documents, sum_of_chunks
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import check_model
from bpe_llama.model.training.step import LossFunction, TensorBatch, hidden_states

_LOGITS = 1 << 24  # of each model in memory at once: 64 MiB of float32


def distillation_loss(
    teacher: LlamaForCausalLM, temperature: float = 2.0, alpha: float = 0.5, *, chunk_size: int | None = None
) -> LossFunction:
    """Return a loss function of model, micro-batch and the learned tokens of the step, for ``train(loss_fn=)``.

    For each learned token it adds ``alpha * T^2 * KL(teacher || model) + (1 - alpha) * cross-entropy`` and divides the
    sum by the learned tokens, so that the losses of micro-batches add up to the mean. Both distributions of the KL
    divergence are softmax(logits / T); T^2 keeps its gradient's size independent of the temperature T.

    Args:
        teacher: A model with the vocabulary of the trained one; set to evaluation mode, moved to the batch's device,
            and not trained.
        temperature: T, above 0.
        alpha: Weight of the divergence, 0 to 1.
        chunk_size: Positions whose logits are in memory at once; by default what keeps each model's at 64 MiB.

    Raises:
        ValueError: If an option is out of range; when the loss is called, if the vocabularies differ in size or the
            batch is longer than the teacher's context.

    Cost: the teacher's forward pass. If there are more positions than ``chunk_size``, the backward pass computes both
    heads again.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.

    Example:
        >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> loss_fn = distillation_loss(LlamaForCausalLM(config), alpha=1.0)
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> abs(loss_fn(LlamaForCausalLM(config), TensorBatch(ids, labels=ids), 2).item()) < 1e-6  # the same weights
        True
    """
    check_model(teacher, "teacher")
    if not (math.isfinite(number("temperature", temperature)) and temperature > 0):
        raise ValueError(f"temperature is {shown(temperature)}; expected a finite number above 0")
    if not 0 <= number("alpha", alpha) <= 1:
        raise ValueError(f"alpha is {shown(alpha)}; expected 0 to 1")
    chunk_size = None if chunk_size is None else integer("chunk_size", chunk_size, 1)
    teacher.eval()

    def loss_fn(model: LlamaForCausalLM, batch: TensorBatch, learned: int) -> Tensor:
        vocab_size = model.config.vocab_size
        if vocab_size != teacher.config.vocab_size:
            raise ValueError(
                f"the teacher's vocabulary has {teacher.config.vocab_size:,} ids and the model's {vocab_size:,}; "
                "expected the same tokenizer (resize_token_embeddings changes the number)"
            )
        if batch.ids.shape[1] > teacher.config.context_length:
            raise ValueError(
                f"sequences have {batch.ids.shape[1]:,} tokens; the teacher's context is "
                f"{teacher.config.context_length:,}"
            )
        if teacher.device != batch.ids.device:
            teacher.to(batch.ids.device)
        hidden_BTD, mask = hidden_states(model, batch)
        with torch.no_grad():
            taught_BTD = teacher.model(batch.ids, batch.mask_for(teacher), document_ids=batch.document_ids)

        def summed(hidden_MD: Tensor, taught_MD: Tensor, labels_M: Tensor) -> Tensor:
            logits_MV = model.logits(hidden_MD).float()
            check_labels(labels_M, vocab_size)
            with torch.no_grad():
                wanted_MV = functional.log_softmax(teacher.logits(taught_MD).float() / temperature, dim=-1)
            given_MV = functional.log_softmax(logits_MV / temperature, dim=-1)
            divergence_M = functional.kl_div(given_MV, wanted_MV, reduction="none", log_target=True).sum(-1)
            divergence = divergence_M.masked_fill(labels_M == IGNORED, 0.0).sum()
            cross_entropy = functional.cross_entropy(logits_MV, labels_M, ignore_index=IGNORED, reduction="sum")
            return alpha * temperature**2 * divergence + (1 - alpha) * cross_entropy

        labels_M = labels_within_documents(batch.labels, batch.document_ids)[:, 1:].flatten()
        hidden_MD, taught_MD = (states[:, :-1].flatten(0, 1) for states in (hidden_BTD, taught_BTD))
        total = sum_of_chunks(summed, chunk_size or max(1, _LOGITS // vocab_size), hidden_MD, taught_MD, labels_M)
        return model._with_routing(total / learned, batch.labels, mask, learned)

    return loss_fn
