"""Accuracy, loss and confusion matrix of a classifier.

Shapes: ``B`` batch, ``T`` length, ``L`` num_labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from bpe_llama._arguments import integer
from bpe_llama.model.classification import LlamaForSequenceClassification
from bpe_llama.model.config import LlamaConfig

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)  # arrays have no one equality
class LabelledText:
    """A text as ids, int64 (n,), and the id of its label."""

    ids: Ids
    label: int

    @property
    def labels(self) -> Ids:
        """Return the label as an array, (1,)."""
        return np.array([self.label], dtype=np.int64)


@dataclass(frozen=True, eq=False)  # arrays have no one equality
class ClassifierScore:
    """How well a classifier labels texts.

    Attributes:
        loss: Mean cross-entropy in nats per text.
        confusion: int64 (L, L): how many texts of each label (row) were given each label (column).
    """

    loss: float
    confusion: Ids

    @property
    def accuracy(self) -> float:
        """Return the fraction of texts that were given their label."""
        return float(self.confusion.trace() / self.confusion.sum())

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return all figures, for JSON; `names` are those of the labels."""
        return {
            "texts": int(self.confusion.sum()),
            "accuracy": self.accuracy,
            "loss": self.loss,
            "labels": list(names),
            "confusion": self.confusion.tolist(),
        }

    def describe(self, names: Sequence[str]) -> str:
        r"""Return accuracy and confusion matrix as lines of text.

        Example:
            >>> print(ClassifierScore(0.5, np.array([[3, 1], [0, 4]])).describe(["ham", "spam"]))
            accuracy 87.50% of 8 texts, loss 0.5000 nats per text
            true \ predicted   ham  spam
            ham                  3     1
            spam                 0     4
        """
        corner = "true \\ predicted"
        first = max(len(corner), *map(len, names))
        widths = [max(4, len(name), len(f"{self.confusion[:, place].max():,}")) for place, name in enumerate(names)]
        lines = [
            f"accuracy {self.accuracy:.2%} of {self.confusion.sum():,} texts, loss {self.loss:.4f} nats per text",
            "  ".join([corner.ljust(first), *(name.rjust(width) for name, width in zip(names, widths, strict=True))]),
        ]
        for name, counts in zip(names, self.confusion.tolist(), strict=True):
            cells = (f"{count:,}".rjust(width) for count, width in zip(counts, widths, strict=True))
            lines.append("  ".join([name.ljust(first), *cells]))
        return "\n".join(lines)


def pad_texts(texts: Sequence[LabelledText], padding: int) -> tuple[Ids, Ids]:
    """Return ids, int64 (B, T), padded on the right, and labels, int64 (B,).

    Example:
        >>> pad_texts([LabelledText(np.array([5, 6]), 1), LabelledText(np.array([7]), 0)], padding=2)
        (array([[5, 6],
               [7, 2]]), array([1, 0]))
    """
    ids_BT = np.full((len(texts), max(len(text.ids) for text in texts)), padding, dtype=np.int64)
    for row, text in enumerate(texts):
        ids_BT[row, : len(text.ids)] = text.ids
    return ids_BT, np.array([text.label for text in texts], dtype=np.int64)


def checked_padding(config: LlamaConfig, texts: Sequence[LabelledText]) -> int:
    """Return the id that pads texts; raise `ValueError` if the config names none, or a label is out of range."""
    if config.pad_token_id is None:
        raise ValueError("the classifier's config has no pad_token_id; expected the id that pads texts")
    for text in texts:
        if not 0 <= text.label < config.num_labels:
            raise ValueError(f"label {text.label} is not among the {config.num_labels} labels")
    return config.pad_token_id


@torch.no_grad()
def evaluate_classifier(
    model: LlamaForSequenceClassification,
    texts: Sequence[LabelledText],
    *,
    batch_size: int = 16,
    report: Callable[[int], object] | None = None,
) -> ClassifierScore:
    """Return loss, accuracy and confusion matrix of a classifier on labelled texts.

    The text is classified at its last token that is not the config's ``pad_token_id``, as transformers does.

    Args:
        model: Any dtype; its train or eval mode does not change.
        texts: At least one; texts of similar length share a batch.
        batch_size: Texts of one forward pass.
        report: Called after each batch with the number of its texts.

    Raises:
        ValueError: If there is no text, the config has no ``pad_token_id``, ``batch_size`` is below 1, or an id or
            label is out of range.
    """
    batch_size = integer("batch_size", batch_size, 1)
    ordered = sorted(texts, key=lambda text: -len(text.ids))
    if not ordered:
        raise ValueError("no texts to evaluate on")
    padding, labels = checked_padding(model.config, ordered), model.config.num_labels
    confusion, total = np.zeros((labels, labels), dtype=np.int64), 0.0
    was_training = model.training
    model.eval()
    try:
        for begin in range(0, len(ordered), batch_size):
            ids_BT, labels_B = pad_texts(ordered[begin : begin + batch_size], padding)
            logits_BL = model(torch.from_numpy(ids_BT).to(model.device)).logits.float().cpu()
            total += functional.cross_entropy(logits_BL, torch.from_numpy(labels_B), reduction="sum").item()
            np.add.at(confusion, (labels_B, logits_BL.argmax(-1).numpy()), 1)
            if report is not None:
                report(len(labels_B))
    finally:
        model.train(was_training)
    return ClassifierScore(total / len(ordered), confusion)
