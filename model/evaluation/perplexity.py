"""Perplexity: how well a model predicts a sequence of tokens.

Shapes: ``T`` length, ``W`` window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bpe_llama._arguments import integer, iterator, wrong
from bpe_llama.model.evaluation.scoring import Ids, Row, score_rows
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import check_model

DEFAULT_WINDOW = 1024


def perplexity(
    model: LlamaForCausalLM, ids: Sequence[int] | Tensor, *, window: int | None = None, stride: int | None = None
) -> float:
    """Return the perplexity of a text: the exponential of the mean cross-entropy in nats of all tokens but the first.

    The model reads windows that begin ``stride`` tokens apart. Each token is predicted once, in the first window that
    contains it, from the tokens before it in that window; a smaller stride gives longer contexts. Compare perplexities
    only at equal vocabulary, text, window and stride. The result is infinite if it exceeds a float's range.

    Args:
        model: A model of any dtype, quantized or not; its train or eval mode does not change.
        ids: (T,), at least two tokens.
        window: W, the tokens of one forward pass; by default the context length, but at most 1024.
        stride: 1 to ``window - 1``, the default, with which windows overlap by one token.

    Raises:
        TypeError: If ``model`` or ``ids`` is something else.
        ValueError: If the text is too short, ``window`` or ``stride`` is out of range, or an id is not an integer or
            outside the vocabulary.

    Cost: ``T / stride`` forward passes of W tokens; memory for the logits of 256 positions.

    Source: Jelinek et al. 1977, doi:10.1121/1.2016299; windows as in
    https://huggingface.co/docs/transformers/perplexity.

    Example:
        >>> from bpe_llama.model import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, initializer_range=0.0)
        >>> round(perplexity(LlamaForCausalLM(config), [1, 5, 7, 9]), 3)  # uniform over 32 tokens
        32.0
    """
    check_model(model)
    iterator("ids", ids, "a list of ids")
    try:
        tokens_T = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError, IndexError, OverflowError) as error:
        raise TypeError(wrong("ids", ids, "a list of ids")) from error
    if tokens_T.ndim != 1 or len(tokens_T) < 2:
        raise ValueError(f"ids have shape {tuple(tokens_T.shape)}; expected (length,) with at least 2 tokens")
    if tokens_T.is_floating_point():
        raise ValueError(f"ids are {tokens_T.dtype}; expected integers")
    window, stride = check_windows(window, stride, model.config.context_length)
    rows = list(windows_of(tokens_T.to("cpu", torch.int64).numpy(), window, stride))
    nats = sum(score.nats for score in score_rows(model, rows, batch_size=1))
    return exponential(nats / (len(tokens_T) - 1))


def check_windows(window: int | None, stride: int | None, context: int) -> tuple[int, int]:
    """Return window and stride, with their defaults.

    Raises:
        ValueError: If one is out of range.

    Example:
        >>> check_windows(None, None, context=8192)
        (1024, 1023)
    """
    window = min(DEFAULT_WINDOW, context) if window is None else integer("window", window)
    if not 2 <= window <= context:
        raise ValueError(f"window is {window}; expected 2 to the model's context of {context}")
    stride = window - 1 if stride is None else integer("stride", stride)
    if not 1 <= stride < window:
        raise ValueError(f"stride is {stride}; expected at least 1 and less than the window of {window}")
    return window, stride


def windows_of(ids_T: Ids, window: int, stride: int, first: int = 1) -> Iterator[Row]:
    """Yield the windows of a text; together they score each token from index ``first`` on once.

    Example:
        >>> import numpy as np
        >>> [(row.ids.tolist(), row.first) for row in windows_of(np.arange(5), window=3, stride=2)]
        [([0, 1, 2], 1), ([2, 3, 4], 1)]
    """
    scored = first
    for begin in range(0, len(ids_T), stride):
        end = min(begin + window, len(ids_T))
        if end > scored:
            yield Row(ids_T[begin:end], scored - begin)
            scored = end


def exponential(nats: float) -> float:
    """Return ``exp(nats)``, infinite beyond a float's range."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
