"""The held-out loss of a model, while it is being trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bpe_llama.model.layers.loss import IGNORED
from bpe_llama.model.training.data.batches import TokenArray, checked_window
from bpe_llama.model.training.data.examples import Example, collate
from bpe_llama.model.training.parallel import Ranks
from bpe_llama.model.training.step import TensorBatch, batch_loss

if TYPE_CHECKING:
    from bpe_llama.model.llama import LlamaForCausalLM


def evaluate(
    model: LlamaForCausalLM,
    tokens: TokenArray,
    *,
    window: int = 256,
    batch_size: int = 16,
    max_windows: int | None = None,
    ranks: Ranks | None = None,
) -> float:
    """Return the model's mean loss on `tokens`, in nats per token, over consecutive windows.

    Args:
        model: The model, on any device; its training mode is restored.
        tokens: Token array `(n,)`, such as `open_tokens` returns.
        window: Tokens per window; a shorter rest is not evaluated unless there is no other window.
        batch_size: Windows per forward pass.
        max_windows: Evaluate only the first `max_windows` windows.
        ranks: Split each batch over them; all of them call this function.

    Raises:
        ValueError: If there are fewer than 2 tokens, or a token is outside the model's vocabulary.
    """
    if len(tokens) < 2:
        raise ValueError(f"{len(tokens)} tokens, expected at least 2 to evaluate on")
    window = min(window, len(tokens))
    count = min(len(tokens) // window, max_windows or len(tokens))

    def batches() -> Iterator[tuple[Tensor, Tensor, int]]:
        for first in range(0, count, batch_size):
            rows = [
                torch.from_numpy(checked_window(tokens, row * window, window, model.config.vocab_size))
                for row in range(first, min(first + batch_size, count))
            ]
            ids = torch.stack(rows)
            yield ids, ids, ids[:, 1:].numel()

    return _mean_loss(model, batches(), ranks or Ranks())


def evaluate_examples(
    model: LlamaForCausalLM, examples: Sequence[Example], *, batch_size: int = 16, ranks: Ranks | None = None
) -> float:
    """Return the model's mean loss on the learned tokens of `examples`, in nats per token.

    Args:
        model: The model, on any device; its training mode is restored.
        examples: At least one.
        batch_size: Examples per forward pass.
        ranks: Split each batch over them; all of them call this function.

    Raises:
        ValueError: If there is no example.
    """
    if not examples:
        raise ValueError("no examples to evaluate on")

    def batches() -> Iterator[tuple[Tensor, Tensor, int]]:
        for first in range(0, len(examples), batch_size):
            part = examples[first : first + batch_size]
            ids, labels = collate(part)
            yield torch.from_numpy(ids), torch.from_numpy(labels), sum(example.learned for example in part)

    return _mean_loss(model, batches(), ranks or Ranks())


@torch.no_grad()
def _mean_loss(model: LlamaForCausalLM, batches: Iterable[tuple[Tensor, Tensor, int]], ranks: Ranks) -> float:
    """Return the mean of the losses of batches, which are ids, labels and the number of learned tokens."""
    device = next(model.parameters()).device
    was_training, total, count = model.training, 0.0, 0
    model.eval()
    try:
        for ids, labels, learned in batches:
            mine = ranks.share(len(ids))
            if mine.start == mine.stop:  # with FSDP every rank takes part in every forward pass
                ids, labels = ids[:1], torch.full_like(ids[:1], IGNORED)
            else:
                ids, labels = ids[mine], labels[mine]
            total += batch_loss(model, TensorBatch(ids.to(device), labels.to(device)), 1).item()
            count += learned
    finally:
        model.train(was_training)
    return ranks.sum(total)[0] / count
