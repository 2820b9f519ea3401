"""Continuous batching: requests join a running batch, which decodes one token of every sequence a step.

Shapes: ``B`` sequences, ``T`` new ids of a sequence, ``M`` new ids of all, ``D`` hidden_size, ``V`` vocab_size.

A server holds one `Engine`, calls `Engine.add_request` as requests arrive and `Engine.step` in a loop. A step prefills
waiting prompts in the same pass in which running sequences decode.

Source: Yu et al. 2022, "Orca", section 3.1 (iteration-level scheduling); the names are vLLM's.
"""

from __future__ import annotations

import time
from collections import abc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bpe_llama._arguments import instance, integer
from bpe_llama.model.backends.forward import Refreshed, prefill_padded, prefill_ragged
from bpe_llama.model.cache import make_cache
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.generation.admission import SharedPrefixes, admissible, joinable, prefill_shares
from bpe_llama.model.generation.logprobs import SCORED_CHUNK, prefill_scored, record_logprobs, record_scored
from bpe_llama.model.generation.prompts import checked_prompts
from bpe_llama.model.generation.sampler_dispatch import append_id, fast_forward, sample_isolated, sample_next_ids
from bpe_llama.model.layers.rope_scaling import recompute_length
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence


class Engine:
    """A running batch. Running sequences take the first slots of the cache; the last one moves into a freed slot.

    Keys and values of a finished sequence stay in its slot. `prefill` of one prompt reuses their common prefix (the
    next turn of a conversation, the same instructions again). Requests of `add_request` share a prefix cache outside of
    the slots, if the engine has one. Requests with the same prompt and salt share one prefill.

    Args:
        model: Weights to generate with.
        slots: Sequences that run at once.
        max_length: Tokens a slot can hold, prompt included; the model's context by default.
        prefill_chunk: Prompt tokens per forward pass. It bounds the memory of a long prompt, and how long a step with
            prompts delays running sequences.
        cache: ``"full"``; ``"int8"``, quantized to a quarter of float32's memory; or ``"ring"``, which stores only what
            a sliding window attends to and supports no prefix cache.
        prefix_cache_bytes: Memory of the prefix cache; 0 for none. If RoPE scaling depends on the length, it stores
            only sequences up to the original context.
        isolate_errors: Whether an error in sampling a sequence ends that one alone, with ``finish_reason="error"``.
        cuda_graph: Whether passes on CUDA replay graphs where the model has them (`model.backends.cuda.decoder`).

    Raises:
        ValueError: If a size is below 1, ``max_length`` exceeds the model's context, the model does not support this
            form of cache, or the cache or the memory does not allow a prefix cache.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        slots: int = 1,
        max_length: int | None = None,
        prefill_chunk: int = 512,
        cache: str = "full",
        prefix_cache_bytes: int = 0,
        isolate_errors: bool = False,
        cuda_graph: bool = True,
    ) -> None:
        context = instance("model", model, LlamaForCausalLM).config.context_length
        slots = integer("slots", slots, 1)
        max_length = context if max_length is None else integer("max_length", max_length)
        if not 1 <= max_length <= context:
            raise ValueError(f"max_length is {max_length}; expected 1 to the model's context of {context}")
        prefill_chunk = integer("prefill_chunk", prefill_chunk, 1)
        prefix_cache_bytes = integer("prefix_cache_bytes", prefix_cache_bytes, 0)
        self.model = model
        self.prefill_chunk = prefill_chunk
        self.cache = make_cache(cache, model.config, slots, max_length, prefill_chunk, model.dtype, model.device)
        self.prefixes = SharedPrefixes(model.config, self.cache, prefix_cache_bytes)
        self.isolate_errors = isolate_errors
        self.running: list[Sequence] = []
        """Sequences with a slot, in the order of their slots."""
        self.waiting: list[Sequence] = []
        """Requests without a slot yet, first come first served."""
        self._prefix_cache: list[list[int]] = [[] for _ in range(slots)]
        """For each free slot the ids whose keys and values it still holds."""
        self._refreshed = Refreshed(model, self.cache, cuda_graph)
        self._recompute_length = recompute_length(model.config)
        self._most_forced = prefill_chunk - 1 if self._recompute_length is None else 0
        self.num_prefilled_tokens = 0
        """Prompt tokens that all steps have computed."""

    def add_request(self, prompt: abc.Sequence[int], options: GenerationOptions, cache_salt: str = "") -> Sequence:
        """Queue a prompt and return its sequence. A later `step` gives it a slot and prefills it.

        Args:
            prompt: Ids to be continued.
            options: The options of the request.
            cache_salt: Only requests with the same salt share prefixes.

        Raises:
            ValueError: If the prompt is empty, does not fit into a slot or has an id outside the vocabulary.
            TypeError: If an id is no int.
        """
        (sequence,) = self._validated([prompt], [options])
        vocab_size = self.model.config.vocab_size
        outside = next((new_id for new_id in sequence.prompt if not 0 <= new_id < vocab_size), None)
        if outside is not None:
            raise ValueError(f"the prompt has input id {outside}, outside the vocabulary of {vocab_size}")
        sequence.num_prompt_tokens_left = len(sequence.prompt)
        sequence.cache_salt = cache_salt
        self.prefixes.hash_prompt(sequence)
        self.waiting.append(sequence)
        return sequence

    def has_unfinished_requests(self) -> bool:
        """Return whether `step` has work left."""
        return bool(self.running or self.waiting)

    @torch.no_grad()
    def step(self) -> list[Sequence]:
        """Run one forward pass, and return the sequences that got a new id or failed; finished ones leave the batch.

        A pass takes one token of every sequence that decodes, and ``prefill_chunk`` prompt tokens, split by
        `prefill_shares`. A sequence gets its first id in the pass that completes its prompt, so a pass may return none.
        Waiting requests with the same prompt get their first ids in this pass too, as far as slots are free.

        With a full cache and a model that the CPU decoder serves, this is one ragged batch. Elsewhere sequences that
        decode share a pass, and every prompt has its own.
        """
        start = time.perf_counter()
        self._free_finished_slots()
        self._admit_waiting()
        self._recompute_keys()
        running = list(self.running)
        if not running:
            return []
        shares = left = [sequence.num_prompt_tokens_left for sequence in running]
        scored = any(left) and any(sequence.scores_prompt for sequence in running)
        if any(left):
            shares = prefill_shares(left, min(self.prefill_chunk, SCORED_CHUNK) if scored else self.prefill_chunk)
            left = [tokens - share for tokens, share in zip(left, shares, strict=True)]
        ends = [n - len(s.prompt) for s, n in zip(running, self.cache.lengths, strict=False)]  # of cached new ids
        ids = [s.next_prompt_ids(n) if n else s.new_ids[end:] for s, n, end in zip(running, shares, ends, strict=True)]
        with self._rollback_on_error():
            logits_BV = record_scored(running, ids, self._run(ids, every=True)) if scored else self._run(ids)
            sampled = [(row, running[row]) for row, tokens in enumerate(left) if not tokens]
            sampled += self._join([row for row, _ in sampled if shares[row]]) if self.waiting else []
            rows = [row for row, _ in sampled]
            if sampled:
                self._append([s for _, s in sampled], logits_BV if rows == list(range(len(ids))) else logits_BV[rows])
                fast_forward([sequence for _, sequence in sampled], self.cache.capacity, self._most_forced)
            seconds = time.perf_counter() - start
            for slot, (sequence, tokens, share) in enumerate(zip(running, left, shares, strict=True)):
                sequence.num_prompt_tokens_left = tokens
                if share:
                    sequence.prefill_seconds += seconds
                    self.prefixes.save(sequence, self.cache, slot, share)
                else:
                    sequence.decode_seconds += seconds
        self.num_prefilled_tokens += sum(shares)
        self._free_finished_slots()
        return [sequence for _, sequence in sampled]

    def abort(self, sequence: Sequence) -> None:
        """Finish a running or waiting sequence now: its reader is gone, or its text holds a stop string."""
        sequence.finish_reason = sequence.finish_reason or "stop"
        self.waiting = [waiting for waiting in self.waiting if waiting is not sequence]
        self._free_finished_slots()

    @torch.no_grad()
    def prefill(
        self, prompts: abc.Sequence[abc.Sequence[int]], options: Iterable[GenerationOptions], copies: int = 1
    ) -> list[Sequence]:
        """Give prompts a slot at once, prefill them, and return their sequences with one new id each.

        Args:
            prompts: Ids to be continued.
            options: One for each prompt.
            copies: Continuations of each prompt, side by side in the result. They share one prefill; the seed of each
                copy is one more than that of the copy before.

        Raises:
            ValueError: If a prompt is empty or does not fit, or there are too few free slots; the batch is unchanged.
            TypeError: If an id is no int; likewise.
        """
        if copies < 1:
            raise ValueError(f"copies is {copies}; expected at least 1")
        self._free_finished_slots()
        free = self.cache.batch_size - len(self.running)
        if len(prompts) * copies > free:
            raise ValueError(f"{len(prompts) * copies} prompts for {free} free slots")
        admitted, first = self._validated(prompts, options), len(self.running)
        if not admitted:
            return admitted
        self.refresh()
        try:
            return self._prefill_and_sample(admitted, first, copies)
        except BaseException:  # KeyboardInterrupt too: a prompt prefilled in part must not run or serve as a prefix
            del self.running[first:]
            self.cache.lengths[first:] = [0] * (self.cache.batch_size - first)
            raise

    @torch.no_grad()
    def verify(self, sequence: Sequence, draft_ids: list[int]) -> int:
        """Append draft tokens to the only running sequence up to the first one that differs from its own, and one more.

        One forward pass scores all of them (see `bpe_llama.model.generation.speculative`).

        Returns:
            How many draft tokens were accepted.
        """
        self._free_finished_slots()
        if self.running != [sequence] or sequence.num_prompt_tokens_left:
            raise ValueError("draft tokens are verified for a sequence that runs alone, its prompt prefilled")
        start, length, most, accepted = time.perf_counter(), self.cache.lengths[0], self._recompute_length, 0
        if length == most:
            while not self.step():
                pass
            return 0
        if most is not None and length < most:  # tokens beyond are computed with other factors
            draft_ids = draft_ids[: most - length - 1]
        with self._rollback_on_error():
            new_ids = sequence.new_ids[length - len(sequence.prompt) :]
            logits_TV = self._run([[*new_ids, *draft_ids]], every=True)[len(new_ids) - 1 :]
            for place in range(len(draft_ids) + 1):
                self._append([sequence], logits_TV[place : place + 1])
                if place == len(draft_ids) or sequence.new_ids[-1] != draft_ids[place]:
                    break
                accepted += 1
                if sequence.finish_reason:
                    break
            sequence.decode_seconds += time.perf_counter() - start
            fast_forward([sequence], self.cache.capacity, self._most_forced)
            self.cache.lengths[0] = length + len(new_ids) + accepted  # drop keys and values of rejected tokens
        self._free_finished_slots()
        return accepted

    def refresh(self) -> None:
        """Notice what was done to the model since the last admission: other weights, adapters or layers.

        Every admission does so; the first one prepares the weights for the device, which an earlier call spares it.
        """
        if self._refreshed.refresh(self.cache):
            self.reset_prefix_cache()

    def reset_prefix_cache(self) -> None:
        """Let no later prompt reuse keys and values of earlier sequences."""
        self.prefixes.clear()
        self._prefix_cache = [[] for _ in range(self.cache.batch_size)]

    def reserve(self, max_length: int) -> None:
        """Let slots hold at least ``max_length`` tokens, or the whole context if that is less; contents stay."""
        max_length = min(max_length, self.model.config.context_length)
        if max_length > self.cache.capacity:
            self.cache = self.cache.widened(max_length)
            self.refresh()

    def _validated(
        self, prompts: abc.Sequence[abc.Sequence[int]], options: Iterable[GenerationOptions]
    ) -> list[Sequence]:
        """Return the prompts as sequences, if all fit into a slot."""
        checked = checked_prompts(prompts, self.cache.capacity)
        ends = self.model.config, self.model.generation_config.eos_token_ids
        return [Sequence(p, chosen, chosen.ending_ids(*ends)) for p, chosen in zip(checked, options, strict=True)]

    def _admit_waiting(self) -> None:
        """Move waiting requests into free slots, and copy the cached blocks of their prompts there."""
        free = self.cache.batch_size - len(self.running)
        admitted = admissible(self.waiting, self.running, free, self.prefixes) if self.waiting and free else []
        if not admitted:
            return
        self.refresh()
        for slot, sequence in enumerate(admitted, start=len(self.running)):
            self._prefix_cache[slot] = []
            self.prefixes.load(sequence, self.cache, slot)
        # One statement, so that an interruption neither loses a request nor admits it twice.
        self.running, self.waiting = [*self.running, *admitted], [s for s in self.waiting if s not in admitted]

    def _join(self, slots: list[int]) -> list[tuple[int, Sequence]]:
        """Move waiting requests to free slots if this pass completes their prompt; return them with its slot."""
        joined = joinable(slots, self.waiting, self.running, self.cache.batch_size - len(self.running))
        for slot, sequence in joined:
            self._prefix_cache[len(self.running)] = []
            self.cache.copy(slot, len(self.running))
            sequence.share_prompt(self.running[slot])
            self.running.append(sequence)
            self.waiting.remove(sequence)
        return joined

    def _recompute_keys(self) -> None:
        """Drop keys and values that are due to be computed anew (`recompute_length`); steps prefill all ids again."""
        for slot, sequence in enumerate(self.running):
            length = self.cache.lengths[slot]
            if length == self._recompute_length and not sequence.num_prompt_tokens_left:
                sequence.num_prompt_tokens_left = self.cache.prompt_lengths[slot] = length + 1
                self.cache.lengths[slot] = 0

    def _prefill_and_sample(self, admitted: list[Sequence], first: int, copies: int) -> list[Sequence]:
        start = time.perf_counter()
        end = first + len(admitted) * copies
        cached_ids, self._prefix_cache[first:end] = self._prefix_cache[first], [[] for _ in range(first, end)]
        # One by one: padding would overwrite keys that a window still covers, and the logits of prompts are large.
        if self.cache.wraps or any(sequence.scores_prompt for sequence in admitted):
            logits_BV = torch.cat([self._prefill([sequence], first + row) for row, sequence in enumerate(admitted)])
        else:
            logits_BV = self._prefill(admitted, first, cached_ids)
        if copies > 1:
            admitted = [sequence.copy(copy) for sequence in admitted for copy in range(copies)]
            for place in reversed(range(1, len(admitted))):  # from the end, so that no source is overwritten too soon
                self.cache.copy(first + place // copies, first + place)
            logits_BV = logits_BV.repeat_interleave(copies, dim=0)
        self.running += admitted
        self._append(admitted, logits_BV)
        fast_forward(admitted, self.cache.capacity, self._most_forced)
        seconds = time.perf_counter() - start
        for sequence in admitted:
            sequence.prefill_seconds = seconds
        self._free_finished_slots()
        return admitted

    def _prefill(self, admitted: list[Sequence], first: int, cached_ids: abc.Sequence[int] = ()) -> Tensor:
        """Prefill prompts into the slots from ``first`` on; return the logits after each prompt's last id, (B, V).

        A single prompt starts after the prefix that it shares with ``cached_ids``, the ids of its slot.
        """
        lengths = [len(sequence.prompt) for sequence in admitted]
        end = first + len(admitted)
        before, self.cache.prompt_lengths[first:end] = self.cache.prompt_lengths[first], lengths
        cached = 0
        if len(admitted) == 1 and not self.cache.wraps and not admitted[0].scores_prompt:
            cached = admitted[0].num_cached_tokens = self.prefixes.common(admitted[0].prompt, cached_ids, before)
        self.cache.lengths[first:end] = [cached] * len(admitted)
        prompts, cache = [sequence.prompt for sequence in admitted], self._slots(first, end)
        if admitted[0].scores_prompt:  # then it is alone
            logits_BV = prefill_scored(self._refreshed.forward, admitted[0], cache, self.prefill_chunk)
        elif self._refreshed.forward.ragged:
            logits_BV = prefill_ragged(self._refreshed.forward, prompts, cache, self.prefill_chunk)
        else:
            logits_BV = prefill_padded(self.model, prompts, cache, self.prefill_chunk, self._refreshed.hidden)
        self.cache.lengths[first:end] = cache.lengths
        return logits_BV

    def _run(self, ids: abc.Sequence[abc.Sequence[int]], every: bool = False) -> Tensor:
        """Run new ids of the first slots; return the logits after each slot's last, (B, V).

        With ``every`` those after each new id, (M, V).
        """
        cache = self._slots(0, len(ids))
        logits_MV = self._refreshed.forward(ids, cache, every)
        self.cache.lengths[: len(ids)] = cache.lengths
        return logits_MV

    def _slots(self, start: int, end: int) -> KVCache:
        whole = end - start == self.cache.batch_size
        return self.cache if whole else self.cache.rows(start, end)

    def _append(self, sequences: list[Sequence], logits_BV: Tensor) -> None:
        """Sample each sequence's next id, and finish those that end with it."""
        if self.isolate_errors:
            sequences, chosen, logits_BV = sample_isolated(sequences, logits_BV)
        else:
            chosen = sample_next_ids(sequences, logits_BV)
        if any(s.options.logprobs or s.options.top_logprobs for s in sequences):
            record_logprobs(sequences, chosen, logits_BV)
        for sequence, new_id in zip(sequences, chosen, strict=True):
            append_id(sequence, new_id, self.cache.capacity)

    @contextmanager
    def _rollback_on_error(self) -> Iterator[None]:
        """Restore running sequences if a pass fails or is interrupted, so that it can be repeated."""
        lengths, running, waiting = list(self.cache.lengths), list(self.running), list(self.waiting)
        before = [
            (s, s.num_prompt_tokens_left, len(s.new_ids), len(s.logprobs), len(s.top_logprobs))
            for s in (*running, *waiting)
        ]
        try:
            yield
        except BaseException:  # KeyboardInterrupt too
            self.cache.lengths[:] = lengths
            self.running, self.waiting = running, waiting
            for sequence, tokens_left, new_ids, logprobs, top_logprobs in before:
                sequence.num_prompt_tokens_left, sequence.finish_reason, sequence.error = tokens_left, None, None
                del sequence.new_ids[new_ids:], sequence.logprobs[logprobs:], sequence.top_logprobs[top_logprobs:]
            raise

    def _free_finished_slots(self) -> None:
        """Free the slots of finished sequences; after an interruption the next call of any method completes this."""
        for slot in reversed(range(len(self.running))):
            if self.running[slot].finish_reason:
                if self.running[slot].error:
                    self.cache.zero(slot)
                    self.cache.lengths[slot] = 0
                self.prefixes.save(self.running[slot], self.cache, slot)
                *rest, last = self.running
                place = len(rest)
                self._prefix_cache[place] = last.ids[: self.cache.lengths[place]]
                if slot < place:
                    rest[slot] = last
                    self.cache.copy(place, slot)
                self.running[:] = rest
                self.cache.lengths[place] = 0
