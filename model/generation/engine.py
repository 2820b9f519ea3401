"""A running batch: sequences that join, grow by one token a step, and leave.

Shapes: ``B`` sequences, ``T`` new ids of each, ``D`` hidden_size, ``V`` vocab_size.

A server would hold one `Engine` and call `Engine.enter` and `Engine.step` as requests come: prompts are read in the
same passes in which the others grow. `Engine.join` reads them at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, groupby

import torch
from torch import Tensor

from bpe_llama.model.backends.cpu.decoder import FusedDecoder, can_fuse
from bpe_llama.model.backends.cpu.ragged import PackedDecoder
from bpe_llama.model.cache import make_cache
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.generation.prompts import whole_ids
from bpe_llama.model.generation.sampler_dispatch import choose, keep_logprobs, keep_prompt_logprobs
from bpe_llama.model.layers.rope_scaling import same_rotation
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.sampling.params import GenerationOptions, Sample

FUSED_ROWS = 8
"""Up to so many rows, of sequences that bring as many new ids each, one pass costs less if it keeps its memory."""


class Engine:
    """A running batch. Live sequences take the first slots of the cache; one that leaves is replaced by the last.

    A slot keeps its keys and values after its sequence has left. A prompt that joins alone and begins as that
    sequence did (the next turn of a conversation, the same instructions again) is read from where they part.

    Args:
        model: Weights to generate with.
        slots: Sequences that can run at once.
        max_length: Tokens a slot can hold, prompt included; the model's context by default.
        prefill_chunk: Prompt tokens per forward pass; bounds the memory a long prompt takes, and how long those who
            grow wait for those who enter.
        cache: ``"full"``; ``"int8"``, a quarter of float32's memory, rounded; or ``"ring"``, which keeps what a sliding
            window still sees, and so lets no prompt begin from what an earlier one left.

    Raises:
        ValueError: If a size is below 1, ``max_length`` is beyond the model's context, or the model is not made for
            this form of cache.
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
        self.live: list[Sample] = []
        self._left_behind: list[list[int]] = [[] for _ in range(slots)]
        self._fused: FusedDecoder | None = None
        self._packed: PackedDecoder | None = None
        self._mark: list[object] = []

    @torch.no_grad()
    def join(
        self, prompts: Sequence[Sequence[int]], options: Iterable[GenerationOptions], copies: int = 1
    ) -> list[Sample]:
        """Take prompts into the batch and return them, each with its first new id.

        Args:
            prompts: Ids to be continued.
            options: One for each prompt.
            copies: Continuations of each prompt, side by side in what is returned. The prompt is read once; the seed
                of each copy is one more than that of the copy before.

        Raises:
            ValueError: If a prompt is empty or does not fit, or there are too few free slots; then nothing joins.
            TypeError: If an id is no int; likewise.
        """
        if copies < 1:
            raise ValueError(f"copies is {copies}; expected at least 1")
        read = self._admitted(prompts, options, copies)
        first = len(self.live)
        if not read:
            return read
        self._look_at_the_model()
        try:
            return self._take_in(read, first, copies)
        except BaseException:  # Ctrl-C too: nothing half read may run, or be begun from
            del self.live[first:]
            self.cache.lengths[first:] = [0] * (self.cache.batch_size - first)
            raise

    @torch.no_grad()
    def enter(self, prompts: Sequence[Sequence[int]], options: Iterable[GenerationOptions]) -> list[Sample]:
        """Take prompts into the batch and return them, yet unread: the next steps read them while the others grow.

        A step reads some ``prefill_chunk`` ids of prompts, one at least of each; a sequence gets its first new id in
        the step that ends its prompt. With a full cache and a model that `can_fuse` all ids of a step are read in one
        pass; elsewhere those who grow share a pass, and every prompt has one of its own. Prompts are read from their
        beginnings, whatever earlier sequences left.

        Raises:
            ValueError: If a prompt is empty, does not fit or has an id outside the vocabulary, or there are too few
                free slots; then nothing enters.
        """
        entering = self._admitted(prompts, options)
        vocab_size = self.model.config.vocab_size
        for row, sample in enumerate(entering):
            outside = next((new_id for new_id in sample.prompt if not 0 <= new_id < vocab_size), None)
            if outside is not None:
                raise ValueError(f"prompt {row} has input id {outside}, outside the vocabulary of {vocab_size}")
        if not entering:
            return entering
        self._look_at_the_model()
        for slot, sample in enumerate(entering, start=len(self.live)):
            self.cache.prompt_lengths[slot] = len(sample.prompt)
            sample.unread, self.cache.lengths[slot], self._left_behind[slot] = len(sample.prompt), 0, []
        self.live += entering
        return entering

    def _admitted(
        self, prompts: Sequence[Sequence[int]], options: Iterable[GenerationOptions], copies: int = 1
    ) -> list[Sample]:
        """Return the prompts as sequences to be read, if all can be."""
        self._let_go()
        free = self.cache.batch_size - len(self.live)
        if len(prompts) * copies > free:
            raise ValueError(f"{len(prompts) * copies} prompts for {free} free slots")
        checked = [whole_ids(prompt, row) for row, prompt in enumerate(prompts)]
        for row, prompt in enumerate(checked):
            if not prompt:
                raise ValueError(f"prompt {row} is empty; expected at least one id")
            if len(prompt) >= self.cache.capacity:
                raise ValueError(
                    f"prompt {row} has {len(prompt)} ids, which leaves no room in a context of {self.cache.capacity}"
                )
        ends = self.model.config, self.model.generation_config.eos_token_ids
        return [Sample(p, chosen, chosen.ending_ids(*ends)) for p, chosen in zip(checked, options, strict=True)]

    def _take_in(self, read: list[Sample], first: int, copies: int) -> list[Sample]:
        start = time.perf_counter()
        end = first + len(read) * copies
        held, self._left_behind[first:end] = self._left_behind[first], [[] for _ in range(first, end)]
        if self.cache.wraps:  # one by one: padding would overwrite what a window still sees
            logits_BV = torch.cat([self._prefill([sample], first + row) for row, sample in enumerate(read)])
        else:
            logits_BV = self._prefill(read, first, held)
        joined = read
        self._keep_prompt_logprobs(read)
        if copies > 1:
            joined = [_copy_of(sample, copy) for sample in read for copy in range(copies)]
            for place in reversed(range(1, len(joined))):  # from the end, so that no source is overwritten too soon
                self.cache.copy(first + place // copies, first + place)
            logits_BV = logits_BV.repeat_interleave(copies, dim=0)
        self.live += joined
        self._append(joined, logits_BV)
        seconds = time.perf_counter() - start
        for sample in joined:
            sample.prefill_seconds = seconds
        self._let_go()
        return joined

    @torch.no_grad()
    def step(self) -> list[Sample]:
        """Add one id to every live sequence whose prompt is read, and return those; the ended ones leave the batch.

        There may be none while prompts are read; the batch is empty when ``live`` is.
        """
        start = time.perf_counter()
        self._let_go()
        fresh, room = [], self.prefill_chunk
        for sample in self.live:
            place = len(sample.prompt) - sample.unread
            fresh.append(sample.prompt[place : place + max(room, 1)] if sample.unread else sample.new_ids[-1:])
            room -= len(fresh[-1]) if sample.unread else 0
        if not fresh:
            return []
        reading = [bool(sample.unread) for sample in self.live]
        unread = [max(sample.unread - len(ids), 0) for sample, ids in zip(self.live, fresh, strict=True)]
        grown = [sample for sample, left in zip(self.live, unread, strict=True) if not left]
        with self._whole_or_not_at_all():
            logits_BV = self._read(fresh)
            if grown:
                self._append(grown, logits_BV if not any(unread) else logits_BV[[not left for left in unread]])
            seconds = time.perf_counter() - start
            for sample, left, read in zip(self.live, unread, reading, strict=True):
                sample.unread = left
                if read:
                    sample.prefill_seconds += seconds
                else:
                    sample.decode_seconds += seconds
        self._let_go()
        return grown

    @torch.no_grad()
    def verify(self, sample: Sample, guesses: list[int]) -> int:
        """Grow the only live sequence by its guessed ids as far as they are what it would choose, and one more.

        Returns:
            How many guesses held.
        """
        self._let_go()
        if self.live != [sample] or sample.unread:
            raise ValueError("guesses are verified for a sequence that runs alone, its prompt read")
        start = time.perf_counter()
        held = self.cache.lengths[0]
        with self._whole_or_not_at_all():
            logits_TV = self._read([[sample.new_ids[-1], *guesses]], every=True)
            kept = 0
            for place in range(len(guesses) + 1):
                self._append([sample], logits_TV[place : place + 1])
                if place == len(guesses) or sample.new_ids[-1] != guesses[place]:
                    break
                kept += 1
                if sample.finish:
                    break
            sample.decode_seconds += time.perf_counter() - start
            self.cache.lengths[0] = held + 1 + kept  # forget the guesses that did not hold
        self._let_go()
        return kept

    def leave(self, sample: Sample) -> None:
        """End a live sequence now (its reader has gone, a stop string was found)."""
        sample.finish = sample.finish or "stop"
        self._let_go()

    def forget(self) -> None:
        """Let no later prompt begin from what ended sequences left in the cache."""
        self._left_behind = [[] for _ in range(self.cache.batch_size)]

    def make_room(self, max_length: int) -> None:
        """Let slots hold at least this many tokens, or as many as the context does; what they hold is kept."""
        max_length = min(max_length, self.model.config.context_length)
        if max_length > self.cache.capacity:
            self.cache = self.cache.widened(max_length)

    def _slots(self, start: int, end: int) -> KVCache:
        whole = end - start == self.cache.batch_size
        return self.cache if whole else self.cache.rows(start, end)

    def _read(self, ids: Sequence[Sequence[int]], first: int = 0, every: bool = False) -> Tensor:
        """Read new ids into the slots from ``first`` on; return the logits after each slot's last, (B, V).

        Args:
            ids: Of each slot, one at least.
            first: The first slot.
            every: Return those after each of the new ids, (M, V).
        """
        if self._packed is None and len({len(new) for new in ids}) > 1:
            runs = [list(run) for _, run in groupby(ids, len)]
            firsts = accumulate(map(len, runs), initial=first)
            # Cloned: the fused decoder's next pass may write over what its last one returned.
            return torch.cat([self._read(*both, every).clone() for both in zip(runs, firsts)])  # noqa: B905
        cache = self._slots(first, first + len(ids))
        few = len({len(new) for new in ids}) == 1 and len(ids) * len(ids[0]) <= FUSED_ROWS
        if self._packed is not None and not few:
            logits_MV = self._packed(ids, cache, every)
        elif self._fused is not None and (few or every or len(ids[0]) == 1):
            logits_BTV = self._fused(ids, cache)
            logits_MV = logits_BTV.flatten(0, 1) if every else logits_BTV[:, -1]
        else:
            ids_BT = torch.tensor(ids, device=self.model.device)
            out = self.model(ids_BT, past_key_values=cache, logits_to_keep=0 if every else 1)
            logits_MV = out.logits.flatten(0, 1)
        self.cache.lengths[first : first + len(ids)] = cache.lengths
        return logits_MV

    def _look_at_the_model(self) -> None:
        """Notice what was done to the model since the last sequence joined: other weights, adapters or layers."""
        if not can_fuse(self.model):
            self._fused = None
        elif self._fused is None:
            self._fused = FusedDecoder(self.model)
        else:
            self._fused.refresh()
        full = type(self.cache) is KVCache
        self._packed = PackedDecoder(self._fused) if full and self._fused is not None else None
        mark = _mark_of(self.model)
        if mark != self._mark:
            self.forget()
            self._mark = mark

    def _prefill(self, joined: list[Sample], first: int, held: Sequence[int] = ()) -> Tensor:
        """Read the prompts into slots from ``first`` on; return the logits after each prompt's last id, (B, V).

        A prompt that comes alone is read from where it parts from the ids ``held`` in its slot.

        Rows are aligned at the left, so causality alone keeps every token from the padding behind its row's end;
        what the padding left in the cache is forgotten afterwards.
        """
        lengths = [len(sample.prompt) for sample in joined]
        before, self.cache.prompt_lengths[first : first + len(joined)] = self.cache.prompt_lengths[first], lengths
        cache = self._slots(first, first + len(joined))
        known, config = 0, self.model.config
        texts = (before, len(held)), (lengths[0], lengths[0])
        alike = same_rotation(config.rope, config.max_position_embeddings, *texts)
        if len(joined) == 1 and not cache.wraps and alike:
            known = joined[0].reused = _common(held, joined[0].prompt[:-1])
        self.cache.lengths[first : first + len(joined)] = cache.lengths[:] = [known] * len(joined)
        if self._packed is not None:
            return self._prefill_packed(joined, first)
        width = max(lengths)
        ids_BT = torch.tensor([sample.prompt + [0] * (width - len(sample.prompt)) for sample in joined])
        ids_BT = ids_BT.to(self.model.device)
        last_BD = None
        for start in range(known, width, self.prefill_chunk):
            chunk_BT = ids_BT[:, start : start + self.prefill_chunk]
            hidden_BTD = self.model.model(chunk_BT, past_key_values=cache)
            last_BD = hidden_BTD.new_empty(len(joined), hidden_BTD.shape[-1]) if last_BD is None else last_BD
            for row, length in enumerate(lengths):
                if start < length <= start + chunk_BT.shape[1]:
                    last_BD[row] = hidden_BTD[row, length - start - 1]
        cache.truncate(lengths)
        self.cache.lengths[first : first + len(joined)] = cache.lengths
        logits_BV: Tensor = self.model.lm_head(last_BD)
        return logits_BV

    def _prefill_packed(self, joined: list[Sample], first: int) -> Tensor:
        """The same without padding: a pass takes the next ids of as many prompts as fill it."""
        read: list[Tensor] = []
        done = 0
        while done < len(joined):
            fresh: list[list[int]] = []
            room = self.prefill_chunk
            for slot, sample in enumerate(joined[done:], start=first + done):
                if room:
                    held = self.cache.lengths[slot]
                    fresh.append(sample.prompt[held : held + room])
                    room -= len(fresh[-1])
            logits_BV = self._read(fresh, first + done)
            last = done + len(fresh) - 1
            whole = self.cache.lengths[first + last] == len(joined[last].prompt)
            read.append(logits_BV[: len(fresh) - (not whole)].clone())  # the next pass may write over it
            done = last + whole
        return torch.cat(read)

    def _keep_prompt_logprobs(self, samples: list[Sample]) -> None:
        for sample in samples:
            if sample.options.prompt_logprobs and not sample.prompt_logprobs:
                keep_prompt_logprobs(self.model, sample)

    def _append(self, samples: list[Sample], logits_BV: Tensor) -> None:
        self._keep_prompt_logprobs(samples)
        chosen = choose(samples, logits_BV)
        keep_logprobs(samples, chosen, logits_BV)
        for sample, new_id in zip(samples, chosen, strict=True):
            sample.new_ids.append(new_id)
            if new_id in sample.eos_ids:
                sample.finish = "eos"
            elif len(sample.new_ids) == sample.options.max_new_tokens:
                sample.finish = "length"
            elif len(sample.prompt) + len(sample.new_ids) >= self.cache.capacity:
                sample.finish = "context"

    @contextmanager
    def _whole_or_not_at_all(self) -> Iterator[None]:
        """Leave live sequences as they were where what grows them fails or is interrupted: it can be done again."""
        lengths = list(self.cache.lengths)
        before = [(s, s.unread, len(s.new_ids), len(s.logprobs), len(s.top_logprobs)) for s in self.live]
        try:
            yield
        except BaseException:  # Ctrl-C too
            self.cache.lengths[:] = lengths
            for sample, unread, new_ids, logprobs, top_logprobs in before:
                sample.unread, sample.finish = unread, None
                del sample.new_ids[new_ids:], sample.logprobs[logprobs:], sample.top_logprobs[top_logprobs:]
            raise

    def _let_go(self) -> None:
        """Free the slots of the ended; where that is interrupted, the next call of anything goes on with it."""
        for slot in reversed(range(len(self.live))):
            if self.live[slot].finish:
                *kept, last = self.live
                place = len(kept)
                self._left_behind[place] = last.ids[: self.cache.lengths[place]]
                if slot < place:
                    kept[slot] = last
                    self.cache.copy(place, slot)
                self.live[:] = kept
                self.cache.lengths[place] = 0


def _copy_of(sample: Sample, number: int) -> Sample:
    """Return a sequence of the same prompt, just read, with a seed of its own."""
    options = replace(sample.options, seed=(sample.options.seed or 0) + number)
    return Sample(
        sample.prompt,
        options,
        sample.eos_ids,
        reused=sample.reused,
        prompt_logprobs=sample.prompt_logprobs,
        prompt_top_logprobs=sample.prompt_top_logprobs,
    )


def _mark_of(model: LlamaForCausalLM) -> list[object]:
    """Return what changes where the weights, or the layers that use them, do."""
    marks: list[object] = []
    for module in model.modules():
        marks.append((id(module), module.training, getattr(module, "active", ())))
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                marks.append((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version))
    return marks


def _common(held: Sequence[int], prompt: list[int]) -> int:
    """Return how many ids two sequences begin with in common."""
    return next((i for i, pair in enumerate(zip(held, prompt)) if pair[0] != pair[1]), min(len(held), len(prompt)))  # noqa: B905
