"""Parts of an optimizer step: the loss of a micro-batch, the gradient norm, the seed of dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bpe_llama._core import shown
from bpe_llama.model.evaluation.scoring import token_nats
from bpe_llama.model.layers.loss import labels_within_documents
from bpe_llama.model.layers.matmul.products import training_products
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.training.data.batches import Batch
from bpe_llama.model.training.optimizers.adamw import local


@dataclass(frozen=True)
class TensorBatch:
    """A `Batch` as tensors on the model's device, its `padded_left`, and its `without_bytes`, if that is known."""

    ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None = None
    document_ids: Tensor | None = None
    without_bytes: Tensor | None = None
    padded_left: bool = False

    @classmethod
    def of(cls, batch: Batch, device: torch.device, token_bytes: npt.NDArray[np.int64] | None = None) -> TensorBatch:
        """Return the batch on `device`; copied to CUDA without waiting."""

        def move(array: npt.NDArray[np.int64]) -> Tensor:
            tensor = torch.from_numpy(array)
            return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

        without_bytes = None if token_bytes is None else batch.without_bytes(token_bytes)
        arrays = (batch.ids, batch.labels, batch.attention_mask, batch.document_ids, without_bytes)
        tensors = (None if array is None else move(array) for array in arrays)
        return cls(*tensors, padded_left=batch.padded_left)  # type: ignore[arg-type, misc]

    def mask_for(self, model: LlamaForCausalLM) -> Tensor | None:
        """Return the mask of padding, if it matters to the model: no token attends to padding on its right."""
        needed = self.padded_left or model.config.num_local_experts or model.model.rotary_emb.length_dependent
        return self.attention_mask if needed else None


class Scored(NamedTuple):
    """The loss of a micro-batch, and sums for its metrics.

    Attributes:
        loss: As of a `LossFunction`.
        text_nats: The cross-entropies of the labels with bytes, for bits per byte.
        correct: The number of texts that a classifier gave their label.
    """

    loss: Tensor
    text_nats: Tensor | None = None
    correct: Tensor | None = None

    @classmethod
    def of(cls, found: Tensor | Scored) -> Scored:
        """Return what a loss or score function returned as a score.

        Raises:
            ValueError: If the loss is no scalar, or has no gradient where one is computed.
        """
        scored = found if isinstance(found, Scored) else cls(found)
        loss, what = scored.loss, "a scalar float tensor with a gradient"
        if not isinstance(loss, Tensor):
            raise ValueError(f"loss_fn returned {shown(loss)}; expected {what}")
        if loss.dim() or not loss.is_floating_point() or (torch.is_grad_enabled() and not loss.requires_grad):
            given = f"a tensor of {loss.dtype}, shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}"
            raise ValueError(f"loss_fn returned {given}; expected {what}")
        return scored


# Any model that the caller trains: its class is not fixed.
LossFunction = Callable[[Any, TensorBatch, int], Tensor | Scored]
"""Takes the model, a micro-batch and the number of learned tokens of the whole step; returns the sum of the losses of
the batch's tokens divided by that number, so that the losses of all micro-batches add up to the mean over the step."""


class Recent(NamedTuple):
    """Sums over steps, such as those since the last line of metrics, or one alone.

    Attributes:
        loss: Of the losses, each the mean over all learned tokens of its step, in nats per token.
        steps: How many.
        nats: Of the cross-entropies of the learned tokens with bytes, of which there are `bytes`, if known.
    """

    loss: float = 0.0
    steps: int = 0
    nats: float = 0.0
    bytes: int = 0


def hidden_states(model: LlamaForCausalLM, batch: TensorBatch) -> tuple[Tensor, Tensor | None]:
    """Return the last hidden states of a training step, (B, T, D), and the mask of padding, if it matters."""
    mask = batch.mask_for(model)
    with training_products():
        return model.model(batch.ids, mask, document_ids=batch.document_ids), mask


def batch_loss(model: LlamaForCausalLM, batch: TensorBatch, learned: int) -> Tensor:
    """Return the summed cross-entropy of a micro-batch divided by the learned tokens of its step, float32."""
    return batch_score(model, batch, learned).loss


def batch_score(
    model: LlamaForCausalLM, batch: TensorBatch, learned: int, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Scored:
    """Return `batch_loss`; with `batch.without_bytes` and a plain cross-entropy also its `text_nats`, float32.

    `label_smoothing` and `z_loss` are those of `TrainConfig`.

    Cost: that of `model.loss`, and the head once more for the labels without bytes.
    """
    labels_BT, text_nats = labels_within_documents(batch.labels, batch.document_ids), None
    hidden_BTD, mask = hidden_states(model, batch)
    loss = model.loss_of_hidden(
        hidden_BTD, labels_BT, num_items_in_batch=learned, label_smoothing=label_smoothing, z_loss=z_loss
    )
    if batch.without_bytes is not None and not label_smoothing and not z_loss:
        places = batch.without_bytes
        hidden_MD, labels_M = hidden_BTD[:, :-1].flatten(0, 1)[places], labels_BT[:, 1:].flatten()[places]
        nats_M, _ = token_nats(model, hidden_MD.detach(), labels_M)
        text_nats = (loss.detach() * learned - nats_M.sum()).float()
    return Scored(model._with_routing(loss, labels_BT, mask, learned), text_nats)


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the 2-norm of all gradients together, of sharded ones this rank's part, float32.

    It is not finite if an element is not.
    """
    norms = [
        torch.linalg.vector_norm(local(parameter.grad), dtype=torch.float32)
        for parameter in parameters
        if parameter.grad is not None
    ]
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(parameters: Sequence[nn.Parameter], largest: float, norm: Tensor) -> None:
    """Scale gradients with the 2-norm `norm` to a norm of at most `largest`, as torch's `clip_grad_norm_` does."""
    if norm.device.type == "cpu" and norm + 1e-6 <= largest:
        return  # the factor is 1
    gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))


@contextlib.contextmanager
def seeded(seed: int, step: int, device: torch.device, rank: int = 0) -> Iterator[None]:
    """Seed torch's global generators, which dropout draws from, by seed, step and rank, and restore them afterwards.

    Rank 0 draws as one process does, so with dropout the result depends on the number of ranks, and on nothing else.
    """
    place = [seed, step, rank] if rank else [seed, step]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
        yield
