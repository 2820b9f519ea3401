"""The training losses.

Shapes: ``B`` batch, ``T`` length, ``D`` hidden_size, ``V`` vocab_size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""The label that counts for nothing (padding, a prompt that is not trained on)."""


def next_token_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Return the mean cross-entropy of each next token, float32.

    Position ``t`` is scored against the label at ``t + 1``; the last position has nothing to predict. If every label
    is ignored the mean is over nothing: not a number, as in transformers.

    Raises:
        ValueError: If shapes differ, or a label is neither -100 nor inside the vocabulary (checked on the CPU).

    Example:
        >>> next_token_loss(torch.zeros(1, 3, 8), torch.tensor([[1, 2, -100]])).item() == torch.tensor(8.0).log().item()
        True
    """
    if labels_BT.shape != logits_BTV.shape[:-1]:
        raise ValueError(f"labels have shape {tuple(labels_BT.shape)}; expected {tuple(logits_BTV.shape[:-1])}")
    check_labels(labels_BT, logits_BTV.shape[-1])
    return functional.cross_entropy(
        logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten().to(logits_BTV.device), ignore_index=IGNORED
    )


def check_labels(labels: Tensor, vocab_size: int) -> None:
    """Check that labels are -100 or ids; elsewhere than on the CPU torch reports them itself.

    Raises:
        ValueError: If a label is out of range.
    """
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= vocab_size)]
    if wrong.numel():
        raise ValueError(
            f"label {int(wrong[0])} is neither {IGNORED} (ignored) nor inside the vocabulary of {vocab_size}"
        )
