"""Beam search: several continuations in parallel, each step keeping those of the highest score.

Shapes: ``N`` beams, ``V`` vocab_size.

Source: ending and length penalty follow transformers 5.23, with which the tests compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bpe_llama._arguments import boolean, instance, integer, number
from bpe_llama._core import shown
from bpe_llama.model.backends.forward import decoder_for, forward_for, prefill_padded
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.generation.prompts import checked_prompts
from bpe_llama.model.generation.sampler_dispatch import processed_scores
from bpe_llama.model.layers.rope_scaling import recompute_length
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import check_model
from bpe_llama.model.sampling.ordered import FILTERS, filtered_in_order, xtc_chance
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.uniform import SEED_BITS, uniform

EarlyStopping = bool | Literal["never"]
LARGEST_PENALTY = 10
"""The largest length penalty, of either sign: there any difference in length outweighs the scores."""


@dataclass(frozen=True)
class Continuation:
    """New ids and their score: the sum of their log-probabilities / number of ids ** length penalty."""

    new_ids: list[int]
    score: float


@torch.no_grad()
def beam_search(
    model: LlamaForCausalLM,
    prompt: Sequence[int],
    options: GenerationOptions,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    prefill_chunk: int = 512,
    do_sample: bool = False,
    stopped: Callable[[list[int]], bool] | None = None,
) -> list[Continuation]:
    """Return up to ``num_beams`` continuations of a prompt, the best first.

    Args:
        model: Weights to generate with.
        prompt: Ids.
        options: Number of new ids, ending ids, and everything that changes scores before the filters: biases,
            penalties, n-grams ... They act on log-probabilities. Filters and seed matter only with ``do_sample``.
        num_beams: Running continuations.
        length_penalty: Above 0 favours long continuations, below 0 short ones.
        early_stopping: True ends with the first ``num_beams`` finished continuations; False once the best running one
            would score no better if it ended now; ``"never"`` once no running one can score better.
        prefill_chunk: Prompt tokens per forward pass.
        do_sample: Draw the candidates of a step without replacement instead of taking the best. The weight of a
            candidate is the exponential of its score so far.
        stopped: Whether new ids end a continuation, as an EOS id does; `TextGenerator` passes its stop strings.

    Raises:
        ValueError: If an argument is out of range, the prompt is empty or leaves no room in the context, or the logits
            hold NaN, +inf or nothing finite.

    Cost: a forward pass of ``num_beams`` rows per id; keys and values of new ids are copied when beams are reordered.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> found = beam_search(LlamaForCausalLM(config), [1, 5], GenerationOptions(max_new_tokens=4, eos_id=()))
        >>> len(found), len(found[0].new_ids), found[0].score >= found[1].score
        (4, 4, True)
    """
    check_model(model)
    instance("options", options, GenerationOptions)
    boolean("do_sample", do_sample)
    num_beams, prefill_chunk = integer("num_beams", num_beams, 1), integer("prefill_chunk", prefill_chunk, 1)
    if not abs(number("length_penalty", length_penalty)) <= LARGEST_PENALTY:  # NaN too
        raise ValueError(f"length_penalty is {length_penalty}; expected {-LARGEST_PENALTY} to {LARGEST_PENALTY}")
    if not (isinstance(early_stopping, bool) or (isinstance(early_stopping, str) and early_stopping == "never")):
        raise ValueError(f"early_stopping is {shown(early_stopping)}; expected True, False or 'never'")
    context = model.config.context_length
    (prompt,) = checked_prompts([prompt], context)
    limit = min(options.max_new_tokens, context - len(prompt))
    ends = options.ending_ids(model.config, model.generation_config.eos_token_ids)
    cache = KVCache(model.config, num_beams, len(prompt) + limit, dtype=model.dtype, device=model.device)
    logits_NV = _prefill(model, prompt, cache, prefill_chunk)
    forward = forward_for(model, cache, decoder_for(model))

    running = [Continuation([], 0.0)]  # the score is the plain sum here
    finished: list[Continuation] = []
    for length in range(1, limit + 1):
        logprobs_NV = logits_NV.float().log_softmax(-1)
        if options.processes_scores or options.adjusts_scores or do_sample:
            rows = [
                _processed(options, prompt, beam.new_ids, ends, row, do_sample)
                for beam, row in zip(running, logprobs_NV, strict=True)
            ]
            logprobs_NV = torch.stack(rows)
        if length <= options.min_new_tokens:
            logprobs_NV[:, list(ends)] = -torch.inf
        logprobs_NV += logprobs_NV.new_tensor([beam.score for beam in running])[:, None]
        # Enough candidates for num_beams to continue even if every beam also proposes every ending id.
        count = min(max(2, 1 + len(ends)) * num_beams, logprobs_NV.numel())
        scores, places = _drawn(logprobs_NV, count, options, length) if do_sample else _best(logprobs_NV, count)
        ongoing: list[Continuation] = []
        sources: list[int] = []
        unended: list[tuple[Continuation, int]] = []
        for rank, (score, place) in enumerate(zip(scores, places, strict=True)):
            source, new_id = divmod(place, logprobs_NV.shape[1])
            candidate = Continuation([*running[source].new_ids, new_id], score)
            if score == -math.inf:  # dropped by an option
                continue
            ended = new_id in ends or length >= limit or (stopped is not None and stopped(candidate.new_ids))
            if not ended:
                unended.append((candidate, source))
            elif rank < num_beams:
                finished.append(Continuation(candidate.new_ids, score / length**length_penalty))
        for candidate, source in sorted(unended, key=lambda pair: -pair[0].score)[:num_beams]:
            ongoing.append(candidate)
            sources.append(source)
        finished = sorted(finished, key=lambda beam: -beam.score)[:num_beams]
        if not ongoing:
            break
        if len(finished) == num_beams:
            reach = limit if early_stopping == "never" and length_penalty > 0 else length
            if early_stopping is True or ongoing[0].score / reach**length_penalty <= finished[-1].score:
                break
        running = ongoing
        sources += [0] * (num_beams - len(sources))  # unused slots, in vocabularies smaller than the number of beams
        if cache.lengths[0] == recompute_length(model.config):
            texts = [[*prompt, *beam.new_ids] for beam in running]
            texts += texts[:1] * (num_beams - len(running))
            cache.truncate([0] * num_beams)
            cache.prompt_lengths[:] = map(len, texts)
            logits_NV = prefill_padded(model, texts, cache, prefill_chunk)[: len(running)]
            continue
        cache.reorder(sources, len(prompt))
        ids_N1 = [[beam.new_ids[-1]] for beam in running] + [[0]] * (num_beams - len(running))
        logits_NV = forward(ids_N1, cache)[: len(running)]
    return finished


def _processed(
    options: GenerationOptions,
    prompt: Sequence[int],
    new_ids: Sequence[int],
    ends: Sequence[int],
    logprobs_V: Tensor,
    do_sample: bool,
) -> Tensor:
    """Return the scores of one beam's next ids, (V,), after processors and, where candidates are drawn, filters."""
    history = [*prompt, *new_ids] if options.penalty_scope == "context" else new_ids
    scores_V = processed_scores(options, [*prompt, *new_ids], history, ends, logprobs_V)
    if not do_sample:
        return scores_V
    chance = xtc_chance((options.seed or 0) & SEED_BITS, len(new_ids)) if options.xtc_probability else 1.0
    order = options.filters or FILTERS
    kept_V = filtered_in_order(scores_V, order, options.filter_values, chance)
    # Filters keep at least one id more than can end the text, so that the search continues; as in transformers.
    least = scores_V.topk(min(max(2, 1 + len(ends)), len(scores_V))).indices
    temperature = options.temperature if "temperature" in order else 1.0
    if temperature > 0:
        kept_V[least] = scores_V[least] / temperature
    return kept_V


def _best(logprobs_NV: Tensor, count: int) -> tuple[list[float], list[int]]:
    """Return the highest scores, in falling order, and their indices in the flattened rows."""
    best = logprobs_NV.flatten().topk(count)
    _check_finite(best.values[0])
    return best.values.tolist(), best.indices.tolist()


def _drawn(logprobs_NV: Tensor, count: int, options: GenerationOptions, length: int) -> tuple[list[float], list[int]]:
    """Return scores and their indices in the flattened rows, drawn without replacement; fewer if too few are finite."""
    flat = logprobs_NV.flatten()
    _check_finite(flat.max())
    weights = flat.double().softmax(-1)
    places: list[int] = []
    for draw in range(min(count, int((weights > 0).sum()))):
        chance = float(uniform((options.seed or 0) & SEED_BITS, length * count + draw))
        mass = weights.cumsum(-1)
        place = int(torch.searchsorted(mass, mass[-1:] * chance, right=True).clamp(max=len(flat) - 1))
        places.append(place)
        weights[place] = 0.0
    return flat[places].tolist(), places


def _check_finite(highest: Tensor) -> None:
    if not highest.isfinite():  # NaN counts as the largest
        raise ValueError("a row of the logits holds NaN, +inf or nothing finite")


def _prefill(model: LlamaForCausalLM, prompt: list[int], cache: KVCache, chunk: int) -> Tensor:
    """Prefill the prompt into every slot; return the logits after it, (1, V)."""
    cache.prompt_lengths[:] = [len(prompt)] * cache.batch_size
    first = cache.rows(0, 1)
    logits_1V = prefill_padded(model, [prompt], first, chunk)
    cache.lengths[0] = first.lengths[0]
    for slot in range(1, cache.batch_size):
        cache.copy(0, slot)
    return logits_1V
