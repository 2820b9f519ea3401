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

from bpe_llama.model.backends.cpu.decoder import CpuDecoder
from bpe_llama.model.backends.forward import Forward, decoder_for, fingerprint_of, forward_for, prefill_padded
from bpe_llama.model.cache import make_cache
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.generation.prompts import whole_ids
from bpe_llama.model.generation.sampler_dispatch import (
    append_id,
    fast_forward,
    record_logprobs,
    record_prompt_logprobs,
    sample_next_ids,
)
from bpe_llama.model.layers.rope_scaling import recompute_length, same_rotation
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence


class Engine:
    """A running batch. Running sequences take the first slots of the cache; the last one moves into a freed slot.

    Keys and values of a finished sequence stay in its slot as a prefix cache. `prefill` of one prompt reuses their
    common prefix (the next turn of a conversation, the same instructions again).

    Args:
        model: Weights to generate with.
        slots: Sequences that run at once.
        max_length: Tokens a slot can hold, prompt included; the model's context by default.
        prefill_chunk: Prompt tokens per forward pass. It bounds the memory of a long prompt, and how long a step with
            prompts delays running sequences.
        cache: ``"full"``; ``"int8"``, quantized to a quarter of float32's memory; or ``"ring"``, which stores only what
            a sliding window attends to and supports no prefix cache.

    Raises:
        ValueError: If a size is below 1, ``max_length`` exceeds the model's context, or the model does not support this
            form of cache.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        slots: int = 1,
        max_length: int | None = None,
        prefill_chunk: int = 512,
        cache: str = "full",
    ) -> None:
        context = model.config.context_length
        max_length = context if max_length is None else max_length
        if not 1 <= max_length <= context:
            raise ValueError(f"max_length is {max_length}; expected 1 to the model's context of {context}")
        if prefill_chunk < 1:
            raise ValueError(f"prefill_chunk is {prefill_chunk}; expected at least 1")
        self.model = model
        self.prefill_chunk = prefill_chunk
        self.cache = make_cache(cache, model.config, slots, max_length, prefill_chunk, model.dtype, model.device)
        self.running: list[Sequence] = []
        """Sequences with a slot, in the order of their slots."""
        self.waiting: list[Sequence] = []
        """Requests without a slot yet, first come first served."""
        self._prefix_cache: list[list[int]] = [[] for _ in range(slots)]
        """For each free slot the ids whose keys and values it still holds."""
        self._decoder: CpuDecoder | None = None
        self._forward: Forward = forward_for(model, self.cache, None)
        self._fingerprint: list[object] = []
        self._recompute_length = recompute_length(model.config)
        self._most_forced = prefill_chunk - 1 if self._recompute_length is None else 0

    def add_request(self, prompt: abc.Sequence[int], options: GenerationOptions) -> Sequence:
        """Queue a prompt and return its sequence. A later `step` gives it a slot and prefills it.

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
        self.waiting.append(sequence)
        return sequence

    def has_unfinished_requests(self) -> bool:
        """Return whether `step` has work left."""
        return bool(self.running or self.waiting)

    @torch.no_grad()
    def step(self) -> list[Sequence]:
        """Run one forward pass, and return the sequences that got a new id; finished ones leave the batch.

        A pass takes one token of every sequence that decodes, and ``prefill_chunk`` prompt tokens, at least one of each
        prompt. A sequence gets its first id in the pass that completes its prompt; so a pass may return none.

        With a full cache and a model that the CPU decoder serves, this is one ragged batch. Elsewhere sequences that
        decode share a pass, and every prompt has its own.
        """
        start = time.perf_counter()
        self._free_finished_slots()
        self._admit_waiting()
        self._recompute_keys()
        ids, room = [], self.prefill_chunk
        for s, length in zip(self.running, self.cache.lengths, strict=False):
            tokens = s.num_prompt_tokens_left
            ids.append(s.ids[-tokens:][: max(room, 1)] if tokens else s.new_ids[length - len(s.prompt) :])
            room -= len(ids[-1]) if tokens else 0
        if not ids:
            return []
        prefilling = [bool(sequence.num_prompt_tokens_left) for sequence in self.running]
        left = [max(s.num_prompt_tokens_left - len(new), 0) for s, new in zip(self.running, ids, strict=True)]
        sampled = [sequence for sequence, tokens in zip(self.running, left, strict=True) if not tokens]
        with self._rollback_on_error():
            logits_BV = self._run(ids)
            if sampled:
                self._append(sampled, logits_BV if not any(left) else logits_BV[[not tokens for tokens in left]])
                fast_forward(sampled, self.cache.capacity, self._most_forced)
            seconds = time.perf_counter() - start
            for sequence, tokens, was_prefilling in zip(self.running, left, prefilling, strict=True):
                sequence.num_prompt_tokens_left = tokens
                if was_prefilling:
                    sequence.prefill_seconds += seconds
                else:
                    sequence.decode_seconds += seconds
        self._free_finished_slots()
        return sampled

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
        admitted = self._validated(prompts, options)
        first = len(self.running)
        if not admitted:
            return admitted
        self._refresh()
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
        start, length, most = time.perf_counter(), self.cache.lengths[0], self._recompute_length
        if length == most:
            while not self.step():
                pass
            return 0
        if most is not None and length < most:  # tokens beyond are computed with other factors
            draft_ids = draft_ids[: most - length - 1]
        with self._rollback_on_error():
            new_ids = sequence.new_ids[length - len(sequence.prompt) :]
            logits_TV = self._run([[*new_ids, *draft_ids]], every=True)[len(new_ids) - 1 :]
            accepted = 0
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

    def reset_prefix_cache(self) -> None:
        """Let no later prompt reuse keys and values of finished sequences."""
        self._prefix_cache = [[] for _ in range(self.cache.batch_size)]

    def reserve(self, max_length: int) -> None:
        """Let slots hold at least ``max_length`` tokens, or the whole context if that is less; contents stay."""
        max_length = min(max_length, self.model.config.context_length)
        if max_length > self.cache.capacity:
            self.cache = self.cache.widened(max_length)

    def _validated(
        self, prompts: abc.Sequence[abc.Sequence[int]], options: Iterable[GenerationOptions]
    ) -> list[Sequence]:
        """Return the prompts as sequences, if all fit into a slot."""
        checked = [whole_ids(prompt, row) for row, prompt in enumerate(prompts)]
        for row, prompt in enumerate(checked):
            if not prompt:
                raise ValueError(f"prompt {row} is empty; expected at least one id")
            if len(prompt) >= self.cache.capacity:
                raise ValueError(
                    f"prompt {row} has {len(prompt)} ids, which leaves no room in a context of {self.cache.capacity}"
                )
        ends = self.model.config, self.model.generation_config.eos_token_ids
        return [Sequence(p, chosen, chosen.ending_ids(*ends)) for p, chosen in zip(checked, options, strict=True)]

    def _admit_waiting(self) -> None:
        """Move waiting requests into free slots; they are prefilled from position 0."""
        admitted = self.waiting[: self.cache.batch_size - len(self.running)]
        if not admitted:
            return
        self._refresh()
        for slot, sequence in enumerate(admitted, start=len(self.running)):
            self.cache.prompt_lengths[slot] = len(sequence.prompt)
            self.cache.lengths[slot], self._prefix_cache[slot] = 0, []
        # One statement, so that an interruption neither loses a request nor admits it twice.
        self.running, self.waiting = [*self.running, *admitted], self.waiting[len(admitted) :]

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
        if self.cache.wraps:  # one by one: padding would overwrite keys that the window still covers
            logits_BV = torch.cat([self._prefill([sequence], first + row) for row, sequence in enumerate(admitted)])
        else:
            logits_BV = self._prefill(admitted, first, cached_ids)
        self._record_prompt_logprobs(admitted)
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
        cached, config = 0, self.model.config
        texts = (before, len(cached_ids)), (lengths[0], lengths[0])
        same = same_rotation(config.rope, config.max_position_embeddings, *texts)
        if len(admitted) == 1 and not self.cache.wraps and same:
            cached = admitted[0].num_cached_tokens = _common_prefix(cached_ids, admitted[0].prompt[:-1])
        self.cache.lengths[first:end] = [cached] * len(admitted)
        if self._forward.ragged:
            return self._prefill_ragged(admitted, first)
        cache = self._slots(first, end)
        logits_BV = prefill_padded(self.model, [sequence.prompt for sequence in admitted], cache, self.prefill_chunk)
        self.cache.lengths[first:end] = cache.lengths
        return logits_BV

    def _prefill_ragged(self, admitted: list[Sequence], first: int) -> Tensor:
        """Prefill without padding: a pass takes the next ids of as many prompts as ``prefill_chunk`` allows."""
        parts: list[Tensor] = []
        done = 0
        while done < len(admitted):
            ids: list[list[int]] = []
            room = self.prefill_chunk
            for slot, sequence in enumerate(admitted[done:], start=first + done):
                if room:
                    length = self.cache.lengths[slot]
                    ids.append(sequence.prompt[length : length + room])
                    room -= len(ids[-1])
            logits_BV = self._run(ids, first + done)
            last = done + len(ids) - 1
            complete = self.cache.lengths[first + last] == len(admitted[last].prompt)
            parts.append(logits_BV[: len(ids) - (not complete)].clone())  # the next pass may overwrite them
            done = last + complete
        return torch.cat(parts)

    def _run(self, ids: abc.Sequence[abc.Sequence[int]], first: int = 0, every: bool = False) -> Tensor:
        """Run new ids of the slots from ``first`` on; return the logits after each slot's last, (B, V).

        With ``every`` those after each new id, (M, V).
        """
        cache = self._slots(first, first + len(ids))
        logits_MV = self._forward(ids, cache, every)
        self.cache.lengths[first : first + len(ids)] = cache.lengths
        return logits_MV

    def _slots(self, start: int, end: int) -> KVCache:
        whole = end - start == self.cache.batch_size
        return self.cache if whole else self.cache.rows(start, end)

    def _refresh(self) -> None:
        """Notice what was done to the model since the last admission: other weights, adapters or layers."""
        self._decoder = decoder_for(self.model, self._decoder)
        self._forward = forward_for(self.model, self.cache, self._decoder)
        fingerprint = fingerprint_of(self.model)
        if fingerprint != self._fingerprint:
            self.reset_prefix_cache()
            self._fingerprint = fingerprint

    def _record_prompt_logprobs(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if sequence.options.prompt_logprobs and not sequence.prompt_logprobs:
                record_prompt_logprobs(self.model, sequence)

    def _append(self, sequences: list[Sequence], logits_BV: Tensor) -> None:
        """Sample each sequence's next id, and finish those that end with it."""
        self._record_prompt_logprobs(sequences)
        chosen = sample_next_ids(sequences, logits_BV)
        record_logprobs(sequences, chosen, logits_BV)
        for sequence, new_id in zip(sequences, chosen, strict=True):
            append_id(sequence, new_id, self.cache.capacity)

    @contextmanager
    def _rollback_on_error(self) -> Iterator[None]:
        """Restore running sequences if a pass fails or is interrupted, so that it can be repeated."""
        lengths = list(self.cache.lengths)
        before = [
            (s, s.num_prompt_tokens_left, len(s.new_ids), len(s.logprobs), len(s.top_logprobs)) for s in self.running
        ]
        try:
            yield
        except BaseException:  # KeyboardInterrupt too
            self.cache.lengths[:] = lengths
            for sequence, tokens_left, new_ids, logprobs, top_logprobs in before:
                sequence.num_prompt_tokens_left, sequence.finish_reason = tokens_left, None
                del sequence.new_ids[new_ids:], sequence.logprobs[logprobs:], sequence.top_logprobs[top_logprobs:]
            raise

    def _free_finished_slots(self) -> None:
        """Free the slots of finished sequences; after an interruption the next call of any method completes this."""
        for slot in reversed(range(len(self.running))):
            if self.running[slot].finish_reason:
                *rest, last = self.running
                place = len(rest)
                self._prefix_cache[place] = last.ids[: self.cache.lengths[place]]
                if slot < place:
                    rest[slot] = last
                    self.cache.copy(place, slot)
                self.running[:] = rest
                self.cache.lengths[place] = 0


def _common_prefix(cached_ids: abc.Sequence[int], prompt: list[int]) -> int:
    """Return the length of the longest common prefix."""
    pairs = zip(cached_ids, prompt)  # noqa: B905
    return next((i for i, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(cached_ids), len(prompt)))
