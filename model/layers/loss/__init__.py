"""The loss of the next tokens (`next_token`), also without all logits in memory (`linear_cross_entropy`)."""

from bpe_llama.model.layers.loss.linear_cross_entropy import IGNORED
from bpe_llama.model.layers.loss.next_token import (
    check_labels,
    chunked_next_token_loss,
    labels_within_documents,
    next_token_loss,
    sum_of_chunks,
)

__all__ = [
    "IGNORED",
    "check_labels",
    "chunked_next_token_loss",
    "labels_within_documents",
    "next_token_loss",
    "sum_of_chunks",
]
