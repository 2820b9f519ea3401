"""Perplexity: how well a model predicts a text.

Shapes: ``T`` length, ``W`` window, ``C`` positions of one chunk, ``D`` hidden_size, ``V`` vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bpe_llama.model.llama import LlamaForCausalLM

_CHUNK = 256  # positions whose logits are in memory at once


@torch.no_grad()
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
    tokens_T = torch.as_tensor(ids)
    if tokens_T.ndim != 1 or len(tokens_T) < 2:
        raise ValueError(f"ids have shape {tuple(tokens_T.shape)}; expected (length,) with at least 2 tokens")
    if tokens_T.is_floating_point():
        raise ValueError(f"ids are {tokens_T.dtype}; expected integers")
    tokens_T = tokens_T.to(torch.int64)
    context = model.config.context_length
    window = min(1024, context) if window is None else window
    if not 2 <= window <= context:
        raise ValueError(f"window is {window}; expected 2 to the model's context of {context}")
    stride = window - 1 if stride is None else stride
    if not 1 <= stride < window:
        raise ValueError(f"stride is {stride}; expected at least 1 and less than the window of {window}")
    was_training = model.training
    model.eval()
    try:
        total, scored = 0.0, 1  # the first token has no context
        for begin in range(0, len(tokens_T), stride):
            end = min(begin + window, len(tokens_T))
            if end > scored:
                total += _loss_of(model, tokens_T[begin:end], scored - begin)
                scored = end
    finally:
        model.train(was_training)
    try:
        return math.exp(total / (len(tokens_T) - 1))
    except OverflowError:
        return math.inf


def _loss_of(model: LlamaForCausalLM, tokens_W: Tensor, first: int) -> float:
    """Return the summed cross-entropy of the window's tokens from index ``first`` on."""
    tokens_W = tokens_W.to(model.device)
    hidden_WD = model.model(tokens_W[None])[0]
    total = torch.zeros((), dtype=torch.float64, device=hidden_WD.device)
    for begin in range(first, len(tokens_W), _CHUNK):
        targets = tokens_W[begin : begin + _CHUNK]
        logits_CV = model.lm_head(hidden_WD[begin - 1 : begin - 1 + len(targets)]).float()
        total += functional.cross_entropy(logits_CV, targets, reduction="none").double().sum()
    return total.item()
