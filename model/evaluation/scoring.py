"""The negative log-likelihood of the last tokens of many rows, in batches.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size, ``V`` vocab_size, ``M`` scored positions of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from bpe_llama._arguments import integer
from bpe_llama.model.llama import LlamaForCausalLM

Ids = npt.NDArray[np.int64]
_CHUNK = 256  # positions whose logits are in memory at once


class Row(NamedTuple):
    """Tokens of which some are scored.

    Attributes:
        ids: int64 (n,), at most one more than the model's context: nothing follows the last one.
        first: 1 to n: each of ``ids[first:]`` is scored, given all tokens before it.
    """

    ids: Ids
    first: int


class Score(NamedTuple):
    """The score of a row.

    Attributes:
        nats: The summed negative log-likelihood of the scored tokens.
        greedy: Whether each scored token is the likeliest one.
    """

    nats: float
    greedy: bool


@torch.no_grad()
def score_rows(
    model: LlamaForCausalLM,
    rows: Sequence[Row],
    batch_size: int = 8,
    report: Callable[[int], object] | None = None,
) -> list[Score]:
    """Return the score of each row.

    Rows of similar length share a batch, padded on the right. A row's score does not depend on the others, except for
    rounding. Rows that differ in the last token alone, such as the answers of a multiple-choice question, share a
    forward pass.

    Args:
        model: A model of any dtype, quantized or not; its train or eval mode does not change.
        rows: At least one token before the first scored one.
        batch_size: Rows of one forward pass.
        report: Called after each batch with the number of its scored tokens.

    Raises:
        ValueError: If ``batch_size`` is below 1, or an id is outside the vocabulary.

    Cost: one forward pass a batch, longest rows first; memory for the logits of 256 positions.

    Example:
        >>> from bpe_llama.model import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, initializer_range=0.0)
        >>> (score,) = score_rows(LlamaForCausalLM(config), [Row(np.array([1, 5, 7]), first=1)])
        >>> round(score.nats, 4)  # 2 * ln(32)
        6.9315
    """
    batch_size = integer("batch_size", batch_size, 1)
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index].ids), rows[index].ids.tobytes()))
    scores: list[Score] = [Score(0.0, True)] * len(rows)
    was_training = model.training
    model.eval()
    try:
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            for index, score in zip(batch, _score_batch(model, [rows[index] for index in batch]), strict=True):
                scores[index] = score
            if report is not None:
                report(sum(len(rows[index].ids) - rows[index].first for index in batch))
    finally:
        model.train(was_training)
    return scores


def _score_batch(model: LlamaForCausalLM, rows: list[Row]) -> list[Score]:
    inputs: list[Ids] = []
    of_row: list[int] = []  # the row of the input of each row
    for row in rows:
        if not inputs or not np.array_equal(inputs[-1], row.ids[:-1]):
            inputs.append(row.ids[:-1])
        of_row.append(len(inputs) - 1)
    counts = [len(row.ids) - row.first for row in rows]
    targets_M = torch.from_numpy(np.concatenate([row.ids[row.first :] for row in rows]))
    _check_targets(targets_M, model.config.vocab_size)
    places_M = np.concatenate([np.arange(row.first - 1, len(row.ids) - 1) for row in rows])
    hidden_BTD = _hidden_states(model, inputs)
    hidden_MD = hidden_BTD[np.repeat(of_row, counts), places_M]
    nats, greedy = (torch.split(part.cpu(), counts) for part in token_nats(model, hidden_MD, targets_M))
    return [Score(part.sum().item(), bool(same.all())) for part, same in zip(nats, greedy, strict=True)]


@torch.no_grad()
def token_nats(model: LlamaForCausalLM, hidden_MD: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each target, float64 (M,), and whether it is the likeliest id, (M,).

    Cost: memory for the logits of 256 positions.
    """
    nats_M, greedy_M = [], []
    for hidden, targets in zip(
        torch.split(hidden_MD, _CHUNK), torch.split(targets_M.to(hidden_MD.device), _CHUNK), strict=True
    ):
        logits = model.logits(hidden).float()
        nats_M.append(functional.cross_entropy(logits, targets, reduction="none").double())
        greedy_M.append(logits.argmax(-1) == targets)
    return torch.cat(nats_M), torch.cat(greedy_M)


def _hidden_states(model: LlamaForCausalLM, inputs: list[Ids]) -> Tensor:
    """Return the hidden states (B, T, D) of inputs padded on the right, to which no token before attends."""
    lengths = np.array([len(ids) for ids in inputs])
    padded_BT = np.zeros((len(inputs), lengths.max()), dtype=np.int64)
    for row, ids in enumerate(inputs):
        padded_BT[row, : len(ids)] = ids
    mask_BT = None
    if model.model.rotary_emb.length_dependent and lengths.min() < lengths.max():
        # The mask tells the rotation each row's own length.
        mask_BT = torch.from_numpy((np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)).to(model.device)
    return model.model(torch.from_numpy(padded_BT).to(model.device), mask_BT)


def _check_targets(targets_M: Tensor, vocab_size: int) -> None:
    """Raise a ValueError if a scored id is outside the vocabulary; the model checks the others."""
    wrong = targets_M[(targets_M < 0) | (targets_M >= vocab_size)]
    if wrong.numel():
        raise ValueError(f"id {int(wrong[0])} is outside the model's vocabulary of {vocab_size:,}")
