"""The held-out loss of a model, while it is being trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from bpe_llama.model.training.data.batches import Batch, Tokens, checked_window
from bpe_llama.model.training.data.examples import Example, collate
from bpe_llama.model.training.step import TensorBatch, batch_loss

if TYPE_CHECKING:
    from bpe_llama.model.llama import LlamaForCausalLM


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

    return evaluate_batches(model, batches())


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

    def batches() -> Iterator[Batch]:
        for first in range(0, len(examples), batch_size):
            yield Batch(*collate(examples[first : first + batch_size]))

    return evaluate_batches(model, batches())


@torch.no_grad()
def evaluate_batches(model: LlamaForCausalLM, batches: Iterable[Batch]) -> float:
    """Return the model's mean loss on the learned tokens of all batches, in nats per token.

    Args:
        model: The model, on any device; its training mode is restored.
        batches: At least one learned token.
    """
    device = next(model.parameters()).device
    was_training, total, count = model.training, 0.0, 0
    model.eval()
    try:
        for batch in batches:
            total += batch_loss(model, TensorBatch.of(batch, device), 1).item()
            count += batch.learned
    finally:
        model.train(was_training)
    return total / count
