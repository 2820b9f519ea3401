"""Checks of prompts and tokenizers against a model; padding of prompts and of rows that end early."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from operator import index
from typing import Protocol

import torch
from torch import Tensor

from bpe_llama._arguments import instance, iterator
from bpe_llama._core import shown
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.sampling.params import GenerationOptions


class Vocabulary(Protocol):
    """The part of a tokenizer that `check_vocabulary` uses."""

    @property
    def vocab_size(self) -> int:
        """Return one more than the highest id."""

    @property
    def added_tokens(self) -> dict[str, int]:
        """Return the tokens that were added to the vocabulary, and their ids."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """Return the special tokens and their ids."""


def check_vocabulary(tokenizer: Vocabulary, vocab_size: int) -> None:
    """Check that a model has an embedding for every id that plain text can be encoded to.

    Warns:
        UserWarning: If added tokens, such as padding, have ids beyond the model's. A prompt that holds one is refused.

    Raises:
        ValueError: If other tokens have ids beyond the model's.
    """
    if tokenizer.vocab_size <= vocab_size:
        return
    said = f"the tokenizer has {tokenizer.vocab_size:,} ids, more than the model's {vocab_size:,}"
    names = {token_id: token for token, token_id in {**tokenizer.added_tokens, **tokenizer.special_tokens}.items()}
    beyond = [names[token_id] for token_id in range(vocab_size, tokenizer.vocab_size) if token_id in names]
    if len(beyond) < tokenizer.vocab_size - vocab_size:
        raise ValueError(
            f"{said}, and not all of those beyond are added tokens; model.resize_token_embeddings, or "
            "`bpe-llama convert --resize-embeddings`, adds rows for them"
        )
    first = ", ".join(map(repr, beyond[:3])) + (f" and {len(beyond) - 3} more" if len(beyond) > 3 else "")
    warnings.warn(f"{said}; added tokens lie beyond ({first}), and are refused where they are used", stacklevel=3)


def unpad(input_ids: Tensor, attention_mask: Tensor | None = None, padding: int | None = None) -> list[list[int]]:
    """Return each row's ids without the padding on its left.

    Args:
        input_ids: int64 (B, T).
        attention_mask: (B, T), zero where a row is padded.
        padding: The id of padding if there is no mask; None if no id is padding.

    Raises:
        ValueError: If shapes do not fit, ids are no integers, or a row is empty or padded elsewhere.

    Example:
        >>> import torch
        >>> unpad(torch.tensor([[0, 0, 5], [6, 7, 8]]), torch.tensor([[0, 0, 1], [1, 1, 1]]))
        [[5], [6, 7, 8]]
    """
    check_tensors(input_ids=input_ids, attention_mask=attention_mask)
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, length), neither of them 0")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype is torch.bool:
        raise ValueError(f"input_ids has dtype {input_ids.dtype}; expected integers")
    if attention_mask is None and (padding is None or not bool((input_ids == padding).any())):
        return [[int(i) for i in row] for row in input_ids.tolist()]
    inferred = ""
    if attention_mask is None:
        attention_mask = input_ids.ne(-1 if padding is None else padding)
        inferred = f": id {padding}, the model's padding, is taken for it; give an attention_mask to keep it"
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}; expected {tuple(input_ids.shape)}")
    rows = []
    for number, (ids, mask) in enumerate(zip(input_ids.tolist(), attention_mask.bool().tolist(), strict=True)):
        length = sum(mask)
        if length == 0:
            raise ValueError(f"row {number} is all padding; expected at least one id{inferred}")
        if not all(mask[len(ids) - length :]):
            raise ValueError(
                f"row {number} is not padded on the left, where a prompt to be continued must be padded{inferred}"
            )
        rows.append(ids[len(ids) - length :])
    return rows


def check_tensors(**tensors: object) -> None:
    """Raise `TypeError` for an argument that is neither a tensor nor None."""
    for name, tensor in tensors.items():
        if tensor is not None:
            instance(name, tensor, Tensor, "a torch.Tensor")


def whole_ids(prompt: Sequence[int], name: str = "prompt 0") -> list[int]:
    """Return the ids of a prompt as ints, NumPy's and torch's among them.

    Raises:
        TypeError: If one is something else, such as a float, or the prompt is no sequence; ``name`` is the prompt's.

    Example:
        >>> whole_ids([1, 2.0])
        Traceback (most recent call last):
            ...
        TypeError: prompt 0 holds 2.0 at index 1; expected ids, which are ints
    """
    ids: list[int] = []
    for place, value in enumerate(iterator(name, prompt, "a str or a list of ids")):
        try:
            ids.append(index(value))
        except TypeError:
            hint = "; generate_batch takes several texts" if isinstance(value, str) else ""
            what = f"{name} holds {shown(value)} at index {place}"
            raise TypeError(f"{what}; expected ids, which are ints{hint}") from None
    return ids


def checked_prompts(prompts: Sequence[Sequence[int]], capacity: int) -> list[list[int]]:
    """Return the ids of prompts as ints.

    Args:
        prompts: Ids.
        capacity: The most tokens that a sequence may have, prompt included.

    Raises:
        ValueError: If a prompt is empty or leaves no room.
        TypeError: If an id is no int.

    Example:
        >>> checked_prompts([[1, 2, 3]], 3)
        Traceback (most recent call last):
            ...
        ValueError: prompt 0 has 3 ids, which leaves no room in a context of 3
    """
    checked = [whole_ids(prompt, f"prompt {row}") for row, prompt in enumerate(prompts)]
    for row, prompt in enumerate(checked):
        if not prompt:
            raise ValueError(f"prompt {row} is empty; expected at least one id")
        if len(prompt) >= capacity:
            raise ValueError(f"prompt {row} has {len(prompt)} ids, which leaves no room in a context of {capacity}")
    return checked


def padding_id(model: LlamaForCausalLM, options: GenerationOptions) -> int:
    """Return the id that fills finished rows."""
    padding = _padding_of(model)
    return (
        next(iter(options.ending_ids(model.config, model.generation_config.eos_token_ids)), 0)
        if padding is None
        else padding
    )


def inferred_padding_id(model: LlamaForCausalLM, options: GenerationOptions) -> int | None:
    """Return the padding id of prompts without a mask: the model's, or None if it also ends a text."""
    padding = _padding_of(model)
    ends = options.ending_ids(model.config, model.generation_config.eos_token_ids)
    return None if padding in ends else padding


def _padding_of(model: LlamaForCausalLM) -> int | None:
    """Return the padding id of the generation config, else of the config; None if neither has one."""
    stated = (model.generation_config.pad_token_id, model.config.pad_token_id)
    return next((token_id for token_id in stated if token_id is not None and token_id >= 0), None)
