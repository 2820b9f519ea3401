"""The next-token loss, and the same loss without the logits of all positions in memory.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size, ``V`` vocab_size, ``M`` positions with a next token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""The label of positions without loss (padding, prompts)."""


def next_token_loss(logits_BTV: Tensor, labels_BT: Tensor, num_items_in_batch: int | None = None) -> Tensor:
    """Return the mean cross-entropy of the next tokens, a float32 scalar.

    The logits at ``t`` predict the label at ``t + 1``; the last position predicts nothing. If all labels are ignored
    the mean is NaN, as in transformers.

    Args:
        logits_BTV: Any float dtype; the loss is computed in float32.
        labels_BT: int64; -100 is ignored.
        num_items_in_batch: Divide the summed loss by this number instead of by the number of labels that are not
            ignored. With the learned tokens of several batches, their losses add up to the mean over all tokens.

    Raises:
        ValueError: If shapes differ, or a label is neither -100 nor in the vocabulary (checked on the CPU).
        TypeError: If labels are not int64.

    Example:
        >>> next_token_loss(torch.zeros(1, 3, 8), torch.tensor([[1, 2, -100]])).item() == torch.tensor(8.0).log().item()
        True
    """
    if labels_BT.shape != logits_BTV.shape[:-1]:
        raise ValueError(f"labels have shape {tuple(labels_BT.shape)}; expected {tuple(logits_BTV.shape[:-1])}")
    check_labels(labels_BT, logits_BTV.shape[-1])
    scores_MV, labels_M = logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten().to(logits_BTV.device)
    if num_items_in_batch is None:
        return functional.cross_entropy(scores_MV, labels_M, ignore_index=IGNORED)
    return functional.cross_entropy(scores_MV, labels_M, ignore_index=IGNORED, reduction="sum") / num_items_in_batch


def chunked_next_token_loss(
    hidden_BTD: Tensor, head: nn.Module, labels_BT: Tensor, chunk_size: int, num_items_in_batch: int | None = None
) -> Tensor:
    """Return `next_token_loss` of ``head(hidden_BTD)``, computed for ``chunk_size`` positions at a time.

    Raises:
        ValueError: As `next_token_loss`, or if ``chunk_size`` is below 1.

    Cost: memory for the logits of one chunk; the backward pass computes them again.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; expected at least 1")
    if labels_BT.shape != hidden_BTD.shape[:-1]:
        raise ValueError(f"labels have shape {tuple(labels_BT.shape)}; expected {tuple(hidden_BTD.shape[:-1])}")
    hidden_MD, labels_M = hidden_BTD[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()

    def summed(hidden: Tensor, labels: Tensor) -> Tensor:
        logits = head(hidden)
        check_labels(labels, logits.shape[-1])
        return functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")

    total = hidden_BTD.new_zeros((), dtype=torch.float32)
    for hidden, labels in zip(torch.split(hidden_MD, chunk_size), torch.split(labels_M, chunk_size), strict=True):
        total = total + checkpoint(summed, hidden, labels, use_reentrant=False)
    return total / ((labels_M != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def check_labels(labels: Tensor, vocab_size: int) -> None:
    """Check that labels are -100 or ids. The range is checked on the CPU alone; on CUDA torch reports it.

    Raises:
        ValueError: If a label is out of range.
        TypeError: If labels are not int64.
    """
    if labels.dtype != torch.long:
        raise TypeError(f"labels have dtype {labels.dtype}; expected int64")
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= vocab_size)]
    if wrong.numel():
        raise ValueError(
            f"label {int(wrong[0])} is neither {IGNORED} (ignored) nor inside the vocabulary of {vocab_size}"
        )
