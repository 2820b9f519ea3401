"""The next-token loss, and the same loss without the logits of all positions in memory.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size, ``V`` vocab_size, ``M`` positions with a next token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama._arguments import integer, number
from bpe_llama._core import shown
from bpe_llama.model.layers.documents import Documents
from bpe_llama.model.layers.logits import Finish, Scale
from bpe_llama.model.layers.loss.linear_cross_entropy import FEWEST_POSITIONS, IGNORED, linear_cross_entropy
from bpe_llama.model.layers.matmul.products import recomputed


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
    check_items(num_items_in_batch)
    scores_MV, labels_M = logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten().to(logits_BTV.device)
    if num_items_in_batch is None:
        return functional.cross_entropy(scores_MV, labels_M, ignore_index=IGNORED)
    return functional.cross_entropy(scores_MV, labels_M, ignore_index=IGNORED, reduction="sum") / num_items_in_batch


def check_items(num_items_in_batch: int | Tensor | None) -> None:
    """Raise for a divisor of the loss that is no number, nor a tensor of one on some device.

    Raises:
        TypeError: If it is something else.
        ValueError: If it takes more than 64 bits.
    """
    if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.numel() == 1 and not num_items_in_batch.is_meta:
        return
    if num_items_in_batch is not None and abs(number("num_items_in_batch", num_items_in_batch)) >= 1 << 63:
        raise ValueError(f"num_items_in_batch is {shown(num_items_in_batch)}; expected less than 2**63")


def labels_within_documents(labels_BT: Tensor, document_ids: Tensor | None) -> Tensor:
    """Return labels of which the first of each document is ignored, since its context is another document.

    Example:
        >>> labels_within_documents(torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1]])).tolist()
        [[-100, 6, -100, 8]]
    """
    if document_ids is None or document_ids.shape != labels_BT.shape:  # the loss refuses the wrong shape
        return labels_BT
    return labels_BT.masked_fill(Documents.of(document_ids, labels_BT).begins_BT, IGNORED)


def chunked_next_token_loss(
    hidden_BTD: Tensor,
    head: Callable[[Tensor], Tensor],
    labels_BT: Tensor,
    chunk_size: int | None = None,
    num_items_in_batch: int | None = None,
    *,
    finish: Finish | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Return `next_token_loss` of ``finish(head(hidden_BTD))``, computed for ``chunk_size`` positions at a time.

    Args:
        hidden_BTD: Any float dtype; the loss is computed in float32.
        head: The language-model head: hidden states to logits, or to what ``finish`` turns into logits.
        labels_BT: int64; -100 is ignored.
        chunk_size: By default as many positions as have 2^23 logits, at least 256; 1,024 if the head is not plain.
        num_items_in_batch: As in `next_token_loss`.
        finish: What is done with the output of ``head``; by default nothing.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
        z_loss: Weight of the squared logarithm of the softmax's denominator, added to the loss of each token.

    Raises:
        ValueError: As `next_token_loss`, or if ``chunk_size`` is below 1.

    Cost: memory for the logits of one chunk. A plain head, with a `Scale` or nothing after it, is multiplied once
    (`linear_cross_entropy`); any other, such as one with an adapter or compiled, is computed again in the backward pass
    if there are several chunks.
    """
    chunk_size = None if chunk_size is None else integer("chunk_size", chunk_size, 1)
    check_items(num_items_in_batch)
    if labels_BT.shape != hidden_BTD.shape[:-1]:
        raise ValueError(f"labels have shape {tuple(labels_BT.shape)}; expected {tuple(hidden_BTD.shape[:-1])}")
    hidden_MD, labels_M = hidden_BTD[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()
    divisor = (labels_M != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    if labels_M.device.type == "cpu" and not torch.compiler.is_compiling():
        learned_M = labels_M != IGNORED
        if not learned_M.all():
            hidden_MD, labels_M = hidden_MD[learned_M], labels_M[learned_M]
    if _is_plain(head) and isinstance(finish, Scale | None) and not torch.compiler.is_compiling():
        check_labels(labels_M, head.weight.shape[0])
        loss = linear_cross_entropy(
            hidden_MD if finish is None else hidden_MD * finish.factor,
            head.weight,
            labels_M,
            divisor=divisor,
            chunk_size=chunk_size,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
        )
        return loss.float()

    def summed(hidden: Tensor, labels: Tensor) -> Tensor:
        product = head(hidden)
        logits = (product if finish is None else finish(product)).float()
        check_labels(labels, logits.shape[-1])
        total = functional.cross_entropy(
            logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
        )
        if z_loss:
            total = total + z_loss * (logits.logsumexp(-1).square() * (labels != IGNORED)).sum()
        return total

    return sum_of_chunks(summed, chunk_size or 4 * FEWEST_POSITIONS, hidden_MD, labels_M) / divisor


def sum_of_chunks(function: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """Return the sum of what ``function`` returns for ``size`` rows of the tensors at a time, float32.

    If there are several chunks, the backward pass computes the function again.
    """
    if len(tensors[0]) <= size:
        return function(*tensors)
    total = tensors[0].new_zeros((), dtype=torch.float32)
    for chunk in zip(*(torch.split(tensor, size) for tensor in tensors), strict=True):
        total = total + recomputed(function, *chunk)
    return total


def _is_plain(head: Callable[[Tensor], Tensor]) -> TypeGuard[nn.Linear]:
    """Return whether the logits are a product of the hidden states and a weight, with nothing that watches it."""
    if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return False
    return head.bias is None and type(head.weight.data) is Tensor


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
