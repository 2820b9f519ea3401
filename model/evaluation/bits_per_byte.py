"""Bits per byte of text, and the number of UTF-8 bytes of each token, by which a loss per token becomes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer


def bits_per_byte(nats: float, size: int) -> float:
    """Return the summed loss of a text in bits per byte, the definition of `bpe-llama eval` and of training.

    The loss is that of the tokens of text. BOS, EOS and other special tokens have no bytes: their loss does not count.

    Args:
        nats: The summed loss of the tokens of the text.
        size: The bytes of these tokens.

    Returns:
        NaN if there is no text.

    Example:
        >>> bits_per_byte(math.log(2) * 6, 3)
        2.0
    """
    return nats / math.log(2) / size if size else math.nan


def token_bytes(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return the UTF-8 bytes of each id, int64 ``(tokenizer.vocab_size,)``; 0 for special tokens and unused ids.

    The sum over the ids of a text is the number of its bytes if the tokenizer is lossless: byte-level BPE without a
    normalizer, and SentencePiece's BPE with byte fallback but without normalization. Otherwise it is the number of
    bytes of what is encoded: one more for a text before which a space is put (SentencePiece's ``add_dummy_prefix``,
    byte-level ``add_prefix_space``), those of the normalized text, none for an unknown character.

    ``bits_per_byte(nats of the ids with bytes, sum(token_bytes[ids]))`` compares models of different vocabularies.

    Example:
        >>> from bpe_llama import Tokenizer
        >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=258, special_tokens=["<s>"], progress=False)
        >>> sizes = token_bytes(tok)
        >>> int(sizes[tok.encode("abc é")].sum()), int(sizes[tok.special_tokens["<s>"]])
        (6, 0)
    """
    sizes = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    special = set(tokenizer.special_tokens.values())
    for token_id in range(tokenizer.vocab_size):
        if token_id not in special:
            try:
                sizes[token_id] = len(tokenizer.id_to_bytes(token_id))
            except KeyError:  # an id between tokens that no token has
                continue
    return sizes
