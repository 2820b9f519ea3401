"""Generation of a batch of prompts from start to end, by an `Engine`.

Shapes: ``B`` sequences, ``T`` prompt length, ``V`` vocab_size.

It handles ids and tensors, never text.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bpe_llama._arguments import boolean, instance, integer
from bpe_llama._core import shown
from bpe_llama.model.backends.cuda.dispatch import (
    graph_backend,
    options_unsupported_by_cuda_graph,
    unsupported_by_cuda_graph,
)
from bpe_llama.model.backends.cuda.graph import CudaGraphDecoder
from bpe_llama.model.generation.beam import EarlyStopping, beam_search
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.generation.prompts import (
    check_tensors,
    inferred_padding_id,
    padding_id,
    unpad,
)
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import check_model
from bpe_llama.model.sampling.checks import read_once
from bpe_llama.model.sampling.params import DRAWING_OPTIONS, GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bpe_llama.model.sampling.keywords import GenerationKeywords

__all__ = ["Engine", "GenerationOptions", "Sequence", "generate", "stream_ids", "unpad"]


def generate(
    model: LlamaForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    num_return_sequences: int = 1,
    num_beams: int = 1,
    length_penalty: float | None = None,
    early_stopping: EarlyStopping | None = None,
    cache: str = "full",
    cuda_graph: bool = False,
    do_sample: bool | None = None,
    **options: Unpack[GenerationKeywords],
) -> Tensor:
    """Return prompts and what follows them, int64 (B, T + new), as transformers does.

    ``new`` is the length of the longest continuation; shorter rows are filled with the padding id (the config's, or
    else the first ending id).

    Args:
        model: Weights to generate with.
        input_ids: int64 (B, T), rows padded on the left.
        attention_mask: (B, T), zero where a row is padded. Without it, ids equal to the model's padding id are padding,
            unless that id also ends a text. Padding elsewhere than on the left is refused.
        num_return_sequences: Continuations of each row, in consecutive rows, with the seeds ``seed``, ``seed + 1`` …;
            of a beam search the best ones.
        num_beams: More than 1 runs `bpe_llama.model.generation.beam.beam_search` instead of sampling.
        length_penalty: Of the beam search; by default the generation config's, or 1.
        early_stopping: Of the beam search; by default the generation config's, or False.
        cache: The form of the cache: see `Engine`. A beam search uses a full one.
        cuda_graph: Run each step as one CUDA graph, sampler included (`bpe_llama.model.backends.cuda.graph`);
            warns and generates without one where it is unsupported.
        do_sample: Whether ids are drawn; by default as the generation config says. False is temperature 0; True takes
            the config's temperature and top-p, or 1, even if its own ``do_sample`` is false. A beam search draws its
            candidates.
        **options: Of `GenerationOptions`; a beam search that draws nothing takes none of `DRAWING_OPTIONS`. With a
            ``seed`` of None each row has its own.

    Raises:
        ValueError: If an option is out of range or not one of a beam search; if a prompt is empty, padded on the wrong
            side, or leaves no room in the context.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> generate(LlamaForCausalLM(config), torch.tensor([[1, 5, 7]]), max_new_tokens=4, eos_id=()).shape
        torch.Size([1, 7])
    """
    check_model(model)
    instance("input_ids", input_ids, torch.Tensor, "a torch.Tensor")
    check_tensors(attention_mask=attention_mask)
    num_beams = integer("num_beams", num_beams, 1)
    num_return_sequences = integer("num_return_sequences", num_return_sequences, 1)
    if cuda_graph and num_beams != 1:
        raise ValueError(f"cuda_graph is True and num_beams {num_beams}, but a beam search does not use one")
    given = with_do_sample(model, read_once(options), do_sample)
    why_not = unsupported_by_cuda_graph(model, cache) if cuda_graph else None
    if cuda_graph and why_not is None:
        why_not = options_unsupported_by_cuda_graph(GenerationOptions.for_model(model, **given))
    if why_not is not None:
        warnings.warn(f"generating without a CUDA graph: {why_not}", stacklevel=2)
    if cuda_graph and why_not is None:
        new_BT = _generate_by_cuda_graph(model, input_ids, attention_mask, num_return_sequences, given)
    elif num_beams == 1:
        columns = list(stream_ids(model, input_ids, attention_mask, num_return_sequences, cache, **given))
        new_BT = torch.stack(columns, dim=1)
    else:
        search = model.generation_config.search_options(
            do_sample=search_draws(model, given, do_sample),
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        _warn_of_stop_strings(model)
        chosen = search_options(model, given, search["do_sample"], input_ids.shape[-1:].numel())
        if cache != "full":
            raise ValueError(f"cache is {shown(cache)}, but a beam search keeps a full one")
        if not 1 <= num_return_sequences <= num_beams:
            raise ValueError(f"num_return_sequences is {num_return_sequences}; expected 1 to num_beams ({num_beams})")
        rows: list[list[int]] = []
        for prompt in unpad(input_ids, attention_mask, inferred_padding_id(model, chosen)):
            found = beam_search(model, prompt, chosen, num_beams, **search)
            if len(found) < num_return_sequences:
                raise ValueError(f"num_return_sequences is {num_return_sequences}, but there are only {len(found)}")
            rows += [continuation.new_ids for continuation in found[:num_return_sequences]]
        width, padding = max(map(len, rows)), padding_id(model, chosen)
        new_BT = torch.tensor([row + [padding] * (width - len(row)) for row in rows], device=model.device)
    prompts_BT = input_ids.to(model.device, torch.long).repeat_interleave(num_return_sequences, dim=0)
    return torch.cat([prompts_BT, new_BT], dim=1)


_NOT_OF_SEARCH = {"logprobs", "top_logprobs", "prompt_logprobs", "mirostat", "mirostat_tau", "mirostat_eta"}
"""Options that no beam search supports, even one that draws."""


def with_do_sample(model: LlamaForCausalLM, options: dict[str, Any], do_sample: bool | None) -> dict[str, Any]:
    """Return options with the temperature and top-p that ``do_sample`` implies, as in transformers.

    False is a temperature of 0, with a warning if another is given. True takes the generation config's temperature and
    top-p, or 1, even if its own ``do_sample`` is false. None changes nothing.

    Raises:
        ValueError: If ids are to be drawn at a temperature of 0.
    """
    if do_sample is None:
        return options
    boolean("do_sample", do_sample, "True, False or None")
    if not do_sample:
        if options.get("temperature"):
            given = shown(options["temperature"])
            warnings.warn(f"temperature is {given}, but do_sample=False draws nothing", stacklevel=3)
        return {**options, "temperature": 0.0}
    said = model.generation_config.values
    of_file = {name: 1.0 if said.get(name) is None else said[name] for name in ("temperature", "top_p")}
    options = {**of_file, **options}
    if options["temperature"] == 0:
        raise ValueError("do_sample is True and temperature 0, which draws nothing; expected one of them alone")
    return options


def search_draws(model: LlamaForCausalLM, options: dict[str, Any], do_sample: bool | None = None) -> bool:
    """Return whether a beam search draws its candidates: by ``do_sample``, else by the model's generation config.

    A temperature of 0 draws nothing.
    """
    asked = model.generation_config.values.get("do_sample") if do_sample is None else do_sample
    return bool(asked) and GenerationOptions.for_model(model, **options).temperature != 0


def search_options(
    model: LlamaForCausalLM, options: dict[str, Any], do_sample: bool = False, prompt_length: int | None = None
) -> GenerationOptions:
    """Return the options of a beam search, with the model's own defaults for those not given.

    ``prompt_length`` is as of `GenerationOptions.for_model`.

    Raises:
        ValueError: If one of `DRAWING_OPTIONS` is given and the search draws nothing, or no search supports an option.
    """
    chosen = GenerationOptions.for_model(model, prompt_length, **options)
    for name in options:
        if name in DRAWING_OPTIONS and not do_sample and not (name == "temperature" and chosen.temperature == 0):
            raise ValueError(
                f"{name} is {shown(options[name])}, but a beam search draws nothing unless do_sample is True; leave it "
                "out"
            )
        if name in _NOT_OF_SEARCH and options[name] != getattr(GenerationOptions, name):
            raise ValueError(f"{name} is {shown(options[name])}, but a beam search has no place for it; leave it out")
    if chosen.constraint is not None:
        raise ValueError(f"{chosen.constraint.option} is given, but a beam search supports no grammar; leave it out")
    return chosen


def stream_ids(
    model: LlamaForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    num_return_sequences: int = 1,
    cache: str = "full",
    **options: Unpack[GenerationKeywords],
) -> Iterator[Tensor]:
    """Yield the next id of every row, int64 (B,), until all have finished; finished rows get the padding id.

    Arguments and errors are those of `generate`.
    """
    engine, sequences, padding = _prefilled(
        model, input_ids, attention_mask, num_return_sequences, cache, dict(options)
    )
    step = 0
    while True:
        row = [s.new_ids[step] if step < len(s.new_ids) else padding for s in sequences]
        yield torch.tensor(row, device=model.device)
        step += 1
        if all(len(sequence.new_ids) <= step and sequence.finish_reason for sequence in sequences):
            return
        # Several steps where a sequence computes its keys anew, or reads the rest of its prompt.
        while any(len(sequence.new_ids) <= step and not sequence.finish_reason for sequence in sequences):
            engine.step()


def _warn_of_stop_strings(model: LlamaForCausalLM) -> None:
    if model.generation_config.stop_strings:
        warnings.warn(
            f"the model's generation_config.json names stop_strings = {list(model.generation_config.stop_strings)}, at "
            "which only TextGenerator stops: here are ids alone",
            stacklevel=4,
        )


def _prefilled(
    model: LlamaForCausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    copies: int,
    cache: str,
    options: dict[str, Any],
) -> tuple[Engine, list[Sequence], int]:
    """Return an engine that has prefilled the prompts, their sequences, and the padding id."""
    _warn_of_stop_strings(model)
    chosen = GenerationOptions.for_model(model, input_ids.shape[-1:].numel(), **options)
    prompts = unpad(input_ids, attention_mask, inferred_padding_id(model, chosen))
    room = min(model.config.context_length, max(map(len, prompts)) + chosen.max_new_tokens)
    engine = Engine(model, len(prompts) * max(copies, 1), room, cache=cache)
    each = [chosen] * len(prompts)
    if options.get("seed", 0) is None:
        each = [replace(chosen, seed=None) for _ in prompts]
    sequences = engine.prefill(prompts, each, copies=copies)
    return engine, sequences, padding_id(model, chosen)


def _generate_by_cuda_graph(
    model: LlamaForCausalLM, input_ids: Tensor, attention_mask: Tensor | None, copies: int, options: dict[str, Any]
) -> Tensor:
    """Return the continuations, (B, new)."""
    engine, sequences, padding = _prefilled(model, input_ids, attention_mask, copies, "full", options)
    if engine.running:  # the first id may have ended some
        cache = engine.cache.rows(0, len(engine.running))
        CudaGraphDecoder(model, cache, graph_backend(model)).run(engine.running)
    width = max(len(sequence.new_ids) for sequence in sequences)
    rows = [sequence.new_ids + [padding] * (width - len(sequence.new_ids)) for sequence in sequences]
    return torch.tensor(rows, device=model.device)
