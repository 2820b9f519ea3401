"""The held-out loss of a model, while it is being trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from bpe_llama.model.training.data.batches import Batch, Tokens, checked_window
from bpe_llama.model.training.data.examples import Example, collate
from bpe_llama.model.training.step import LossFunction, TensorBatch, batch_loss

if TYPE_CHECKING:
    from bpe_llama.model.llama import LlamaForCausalLM
    from bpe_llama.model.pretrained import Pretrained


class HeldOutLoss(NamedTuple):
    """The mean loss over the learned tokens of held-out data.

    Attributes:
        loss: In nats per token.
        bits_per_byte: In bits per byte of the tokens' text; NaN if the bytes of the tokens are unknown.
    """

    loss: float
    bits_per_byte: float


def held_out_examples(examples: Sequence[Example], batch_size: int) -> list[Batch]:
    """Return examples as batches of `batch_size` rows."""
    return [Batch(*collate(examples[first : first + batch_size])) for first in range(0, len(examples), batch_size)]


def evaluate(
    model: LlamaForCausalLM,
    tokens: Tokens,
    *,
    window: int = 256,
    batch_size: int = 16,
    max_windows: int | None = None,
) -> float:
    """Return the model's mean loss on `tokens`, in nats per token, over consecutive windows.

    Args:
        model: The model, on any device; its training mode is restored.
        tokens: Token array `(n,)`, such as `open_tokens` returns.
        window: Tokens per window; a shorter rest is not evaluated unless there is no other window.
        batch_size: Windows per forward pass.
        max_windows: Evaluate only the first `max_windows` windows.

    Raises:
        ValueError: If there are fewer than 2 tokens, or a token is outside the model's vocabulary.
    """
    if len(tokens) < 2:
        raise ValueError(f"{len(tokens)} tokens, expected at least 2 to evaluate on")
    window = min(window, len(tokens))
    count = min(len(tokens) // window, max_windows or len(tokens))

    def batches() -> Iterator[Batch]:
        for first in range(0, count, batch_size):
            rows = range(first, min(first + batch_size, count))
            ids = np.stack([checked_window(tokens, row * window, window, model.config.vocab_size) for row in rows])
            yield Batch(ids, ids)

    return held_out_loss(model, batches()).loss


def evaluate_examples(model: LlamaForCausalLM, examples: Sequence[Example], *, batch_size: int = 16) -> float:
    """Return the model's mean loss on the learned tokens of `examples`, in nats per token.

    Args:
        model: The model, on any device; its training mode is restored.
        examples: At least one.
        batch_size: Examples per forward pass.

    Raises:
        ValueError: If there is no example.
    """
    if not examples:
        raise ValueError("no examples to evaluate on")
    return held_out_loss(model, held_out_examples(examples, batch_size)).loss


@torch.no_grad()
def held_out_loss(
    model: Pretrained,
    batches: Iterable[Batch],
    token_bytes: npt.NDArray[np.int64] | None = None,
    loss_fn: LossFunction = batch_loss,
) -> HeldOutLoss:
    """Return the mean loss over the learned tokens of `batches`, of which there is at least one.

    Args:
        model: The model, on any device; its training mode is restored.
        batches: The held-out data.
        token_bytes: The bytes of each id, `(V,)`.
        loss_fn: The loss of a batch.
    """
    device = next(model.parameters()).device
    was_training, total, learned, size = model.training, 0.0, 0, 0
    model.eval()
    try:
        for batch in batches:
            total += loss_fn(model, TensorBatch.of(batch, device), 1).item()
            learned += batch.learned
            size += batch.bytes(token_bytes)
    finally:
        model.train(was_training)
    return HeldOutLoss(total / learned, bits_per_byte(total, size))


def bits_per_byte(nats: float, size: int) -> float:
    """Return a summed loss in bits per byte of text; NaN if there is no text.

    Example:
        >>> bits_per_byte(math.log(2) * 6, 3)
        2.0
    """
    return nats / math.log(2) / size if size else math.nan
