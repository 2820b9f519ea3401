"""The held-out loss of a model, while it is being trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from bpe_llama._arguments import integer, wrong
from bpe_llama._corpus.corpus import Tokens
from bpe_llama.model.evaluation.bits_per_byte import bits_per_byte
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import Pretrained, check_model
from bpe_llama.model.training.data.batches import Batch
from bpe_llama.model.training.data.examples import Example, checked_examples
from bpe_llama.model.training.data.rows import Row, collate, first_windows
from bpe_llama.model.training.parallel import Ranks
from bpe_llama.model.training.step import LossFunction, Scored, TensorBatch, batch_score


class HeldOutLoss(NamedTuple):
    """The mean loss over the learned tokens of held-out data, or over the texts of a classifier.

    Attributes:
        loss: In nats per token, or per text.
        bits_per_byte: The loss of the tokens with bytes, per byte; NaN if the bytes of the tokens are unknown.
        accuracy: Fraction of texts that a classifier gave their label; NaN for other models.
    """

    loss: float
    bits_per_byte: float
    accuracy: float


def held_out_examples(examples: Sequence[Example], batch_size: int) -> list[Batch]:
    """Return examples as batches of `batch_size` rows."""
    rows = [Row(example.ids, example.labels) for example in examples]
    return [collate(rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)]


def evaluate(
    model: LlamaForCausalLM, tokens: Tokens, *, window: int = 256, batch_size: int = 16, max_windows: int | None = None
) -> float:
    """Return the model's mean loss on `tokens`, in nats per token, over consecutive windows.

    Args:
        model: The model, on any device; its training mode is restored.
        tokens: Token array `(n,)`, such as `open_tokens` returns.
        window: Tokens per window; a shorter rest is not evaluated unless there is no other window.
        batch_size: Windows per forward pass.
        max_windows: Evaluate only the first `max_windows` windows.

    Raises:
        ValueError: If there are fewer than 2 tokens, a token is outside the model's vocabulary, or an argument is out
            of range.
    """
    check_model(model)
    window, batch_size = integer("window", window, 2), integer("batch_size", batch_size, 1)
    max_windows = None if max_windows is None else integer("max_windows", max_windows, 1)
    if not hasattr(tokens, "astype"):
        raise TypeError(wrong("tokens", tokens, "an array of ids"))
    if len(tokens) < 2:
        raise ValueError(f"{len(tokens)} tokens, expected at least 2 to evaluate on")
    windows = first_windows(tokens, window, batch_size, max_windows or len(tokens), model.config.vocab_size)
    return held_out_loss(model, windows).loss


def evaluate_examples(model: LlamaForCausalLM, examples: Sequence[Example], *, batch_size: int = 16) -> float:
    """Return `evaluate` of the learned tokens of `examples`, of which `batch_size` share a forward pass.

    Raises:
        ValueError: If there is no example, or none has a token to learn.
    """
    check_model(model)
    batch_size, examples = integer("batch_size", batch_size, 1), checked_examples(examples)
    if not examples:
        raise ValueError("no examples to evaluate on")
    return held_out_loss(model, held_out_examples(examples, batch_size)).loss


@torch.no_grad()
def held_out_loss(
    model: Pretrained,
    batches: Iterable[Batch],
    token_bytes: npt.NDArray[np.int64] | None = None,
    score_fn: LossFunction = batch_score,
    ranks: Ranks | None = None,
) -> HeldOutLoss:
    """Return the mean loss over the learned tokens of `batches`, of which there is at least one.

    The model's training mode is restored. `token_bytes` has the bytes of each id, `(V,)`. The rows of each batch are
    split over the ranks, all of which call this function. If no token is learned, a `ValueError` says so.
    """
    device, ranks = next(model.parameters()).device, ranks or Ranks()
    was_training, sums, learned, size = model.training, np.zeros(len(Scored._fields)), 0, 0
    model.eval()
    try:
        for batch in batches:
            scored = Scored.of(score_fn(model, TensorBatch.of(ranks.rows(batch), device, token_bytes), 1))
            sums += [math.nan if part is None else part.item() for part in scored]
            learned += batch.learned
            size += batch.bytes(token_bytes)
    finally:
        model.train(was_training)
    if not learned:
        raise ValueError("no token of the held-out data is learned; expected one at least, besides the first of a row")
    loss, text_nats, correct = ranks.sum(*sums.tolist())
    return HeldOutLoss(loss / learned, bits_per_byte(text_nats, size), correct / learned)
