"""Parts of an optimizer step: the loss of a micro-batch, the gradient norm, the seed of dropout."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bpe_llama.model.layers.loss import IGNORED

if TYPE_CHECKING:
    from bpe_llama.model.llama import LlamaForCausalLM


class StepResult(NamedTuple):
    """The loss and the gradient norm of a step.

    Attributes:
        loss: Mean over all learned tokens of the step, in nats per token.
        grad_norm: 2-norm of the gradient of `loss`, before clipping.
    """

    loss: float
    grad_norm: float

    @property
    def finite(self) -> bool:
        """Return whether both are finite; otherwise the step is skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def batch_loss(
    model: LlamaForCausalLM,
    ids_BT: Tensor,
    labels_BT: Tensor,
    attention_mask_BT: Tensor | None = None,
    num_items_in_batch: int | None = None,
) -> Tensor:
    """Return the loss of a batch, float32: `model.loss`.

    Args:
        model: The model.
        ids_BT: int64.
        labels_BT: int64; -100 is ignored.
        attention_mask_BT: Zero for padding.
        num_items_in_batch: Learned tokens of all micro-batches of the step, by which the sum is divided; by default
            those of this batch.
    """
    return model.loss(ids_BT, labels_BT, attention_mask_BT, num_items_in_batch=num_items_in_batch)


def learned_tokens(labels: Sequence[npt.NDArray[np.int64]]) -> int:
    """Return the number of learned tokens in several batches; the first token of a row has no prediction.

    Example:
        >>> learned_tokens([np.array([[5, 6, -100]]), np.array([[-100, 7, 8]])])
        3
    """
    return sum(int((array[:, 1:] != IGNORED).sum()) for array in labels)


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the 2-norm of all gradients together, float32; not finite if an element is not."""
    norms = [
        torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
        for parameter in parameters
        if parameter.grad is not None
    ]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


@contextlib.contextmanager
def seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, which dropout draws from, by seed and step, and restore them afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]))
        yield
