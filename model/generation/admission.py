"""Decides which waiting requests get a slot, what they share, and how much of each prompt the next pass prefills."""

from __future__ import annotations

from collections import abc

from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.cache.prefix_cache import BLOCK, PrefixCache, block_hashes, prefix_length
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers.rope_scaling import same_rotation
from bpe_llama.model.sampling.sequence import Sequence


def prefill_shares(left: abc.Sequence[int], chunk: int) -> list[int]:
    """Return how many tokens of each prompt the next pass prefills.

    Half of the chunk is split in equal shares, at least one token each, so that every prompt advances. The other half
    goes to the prompts with the fewest tokens left, so that a short prompt need not wait for a long one. Between equal
    prompts the one in the lower slot comes first.

    Args:
        left: Prompt tokens that each running sequence has left; 0 for a sequence that decodes.
        chunk: Prompt tokens of the pass.

    Example:
        >>> prefill_shares([900, 0, 20, 300], 64)
        [10, 0, 20, 34]
    """
    prefilling = sorted((slot for slot, tokens in enumerate(left) if tokens), key=left.__getitem__)
    shares = [0] * len(left)
    for slot in prefilling:
        shares[slot] = min(left[slot], max(chunk // (2 * len(prefilling)), 1))
    room = chunk - sum(shares)
    for slot in prefilling:
        more = min(left[slot] - shares[slot], max(room, 0))
        shares[slot] += more
        room -= more
    return shares


class SharedPrefixes:
    """The prefix cache of an engine, if it has one; it decides which blocks of a sequence are stored and loaded.

    If RoPE scaling depends on the length, only sequences up to the original context have blocks.

    Args:
        config: The model's config.
        cache: The KV cache of the slots.
        max_bytes: Memory of the prefix cache; 0 for none.

    Raises:
        ValueError: See `PrefixCache`.
    """

    def __init__(self, config: LlamaConfig, cache: KVCache, max_bytes: int) -> None:
        self.blocks = PrefixCache(cache, max_bytes) if max_bytes else None
        self._rope = config.rope, config.max_position_embeddings

    def common(self, prompt: list[int], cached_ids: abc.Sequence[int], prompt_length: int) -> int:
        """Return how many tokens' keys and values of a text a prompt can reuse in the same slot.

        Args:
            prompt: Ids. The last one is never reused, since its logits must be computed.
            cached_ids: The ids of the text.
            prompt_length: The length of the text's prompt.
        """
        lengths = (prompt_length, len(cached_ids)), (len(prompt), len(prompt))
        return prefix_length(cached_ids, prompt[:-1]) if same_rotation(*self._rope, *lengths) else 0

    def hash_prompt(self, sequence: Sequence) -> None:
        """Set the hashes of a prompt's full blocks."""
        length = len(sequence.prompt)
        if self._same_rotation(length, length):
            sequence.block_hashes = block_hashes(sequence.prompt, sequence.cache_salt)

    def matched(self, sequence: Sequence) -> int:
        """Return how many of the first blocks of a prompt are stored."""
        return self.blocks.matched(sequence.block_hashes) if self.blocks else 0

    def load(self, sequence: Sequence, cache: KVCache, slot: int) -> None:
        """Copy the stored blocks of a prompt into a slot; its last id is computed again, for its logits."""
        length = len(sequence.prompt)
        cached = self.blocks.load(sequence.block_hashes, cache, slot) if self.blocks else 0
        cached = min(cached, length - 1)
        cache.lengths[slot], cache.prompt_lengths[slot] = cached, length
        sequence.num_cached_tokens, sequence.num_prompt_tokens_left = cached, length - cached

    def save(self, sequence: Sequence, cache: KVCache, slot: int, new: int | None = None) -> None:
        """Store the full blocks of a slot; with ``new``, only the blocks that the last ``new`` tokens are part of."""
        length = cache.lengths[slot]
        if self.blocks and self._same_rotation(cache.prompt_lengths[slot], length):
            count = length // BLOCK
            if len(sequence.block_hashes) < count:
                ids, known = sequence.ids[:length], sequence.block_hashes
                sequence.block_hashes = block_hashes(ids, sequence.cache_salt, known)
            start = 0 if new is None else (length - new) // BLOCK
            self.blocks.save(sequence.block_hashes[:count], cache, slot, start)

    def clear(self) -> None:
        """Drop all blocks."""
        if self.blocks:
            self.blocks.clear()

    def _same_rotation(self, prompt_length: int, length: int) -> bool:
        """Return whether the keys of a text are rotated as in a short text, and so may be shared."""
        return self.blocks is not None and same_rotation(*self._rope, (prompt_length, length), (1, 1))


def admissible(
    waiting: abc.Sequence[Sequence], running: abc.Sequence[Sequence], slots: int, prefixes: SharedPrefixes
) -> list[Sequence]:
    """Return the requests that get a slot now, first come first served.

    A request waits while a running sequence prefills the same prompt, or the next block that the request needs and the
    prefix cache lacks. Later requests may get a slot before it.

    Args:
        waiting: Requests without a slot.
        running: Sequences with a slot.
        slots: Free slots.
        prefixes: The prefix cache.
    """
    prefilling = [s for s in running if s.num_prompt_tokens_left and not s.new_ids]  # others recompute keys
    pending = {name for sequence in prefilling for name in blocks_to_come(sequence)}
    admitted: list[Sequence] = []
    for sequence in waiting:
        if len(admitted) == slots:
            break
        hashes = sequence.block_hashes
        cached = prefixes.matched(sequence)
        if (cached < len(hashes) and hashes[cached] in pending) or any(same_prompt(sequence, s) for s in prefilling):
            continue
        admitted.append(sequence)
        prefilling.append(sequence)
        pending.update(hashes[cached:])
    return admitted


def joinable(
    slots: abc.Sequence[int], waiting: abc.Sequence[Sequence], running: abc.Sequence[Sequence], free: int
) -> list[tuple[int, Sequence]]:
    """Return waiting requests with the same prompt as a sequence, each with the slot of that sequence.

    Args:
        slots: The slots in which the current pass completes a prompt.
        waiting: Requests without a slot.
        running: Sequences with a slot.
        free: Free slots: the most requests to return.
    """
    fresh = [(slot, running[slot]) for slot in slots if not running[slot].new_ids]
    pairs = ((slot, request) for slot, source in fresh for request in waiting if same_prompt(request, source))
    first: dict[Sequence, int] = {}
    for slot, request in pairs:
        if len(first) < free:
            first.setdefault(request, slot)
    return [(slot, request) for request, slot in first.items()]


def blocks_to_come(sequence: Sequence) -> list[bytes]:
    """Return the hashes of the prompt's blocks that are not complete yet."""
    return sequence.block_hashes[(len(sequence.prompt) - sequence.num_prompt_tokens_left) // BLOCK :]


def same_prompt(one: Sequence, other: Sequence) -> bool:
    """Return whether two requests can share one prefill."""
    return one.prompt == other.prompt and one.cache_salt == other.cache_salt
