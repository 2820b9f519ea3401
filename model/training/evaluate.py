"""The loss of a model on held-out text, while it is being trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from bpe_llama.model.training.data.batches import TokenArray, checked_window
from bpe_llama.model.training.data.examples import Example, padded
from bpe_llama.model.training.step import batch_loss

if TYPE_CHECKING:
    from bpe_llama.model.llama import LlamaForCausalLM


@torch.no_grad()
def evaluate(
    model: LlamaForCausalLM,
    tokens: TokenArray,
    *,
    window: int = 256,
    batch_size: int = 16,
    max_windows: int | None = None,
) -> float:
    """Return the model's mean loss on `tokens`, in nats a token, over windows cut one after the other.

    Args:
        model: The model, on any device; left in the mode it was in.
        tokens: Token array `(n,)`, such as `open_tokens` returns.
        window: Tokens a window; a shorter rest is left out, unless it is all there is.
        batch_size: Windows a forward pass.
        max_windows: Look at this many windows at most, from the first on.
    """
    if len(tokens) < 2:
        raise ValueError(f"{len(tokens)} tokens, expected at least 2 to evaluate on")
    window = min(window, len(tokens))
    count = min(len(tokens) // window, max_windows or len(tokens))
    device = next(model.parameters()).device
    was_training, total = model.training, 0.0
    model.eval()
    try:
        for first in range(0, count, batch_size):
            rows = [
                torch.from_numpy(checked_window(tokens, row * window, window, model.config.vocab_size))
                for row in range(first, min(first + batch_size, count))
            ]
            ids = torch.stack(rows).to(device)
            total += batch_loss(model, ids, ids).item() * len(rows)
    finally:
        model.train(was_training)
    return total / count


@torch.no_grad()
def evaluate_examples(model: LlamaForCausalLM, examples: Sequence[Example], *, batch_size: int = 16) -> float:
    """Return the model's mean loss on what is learned of `examples`, in nats a token.

    Args:
        model: The model, on any device; left in the mode it was in.
        examples: At least one.
        batch_size: Texts a forward pass.
    """
    if not examples:
        raise ValueError("no examples to evaluate on")
    device = next(model.parameters()).device
    was_training, total, count = model.training, 0.0, 0
    model.eval()
    try:
        for first in range(0, len(examples), batch_size):
            part = examples[first : first + batch_size]
            ids, labels = map(torch.from_numpy, padded(part))
            learned = sum(example.learned for example in part)
            total += batch_loss(model, ids.to(device), labels.to(device)).item() * learned
            count += learned
    finally:
        model.train(was_training)
    return total / count
