"""One pass over sequences that bring unlike numbers of new ids: prompts read beside sequences that grow by one.

The rows of all sequences lie one after the other, without padding, so that every product serves all of them; only the
attention looks at sequences one by one. Layers and memory are those of `fused`; the tests hold it to the model.

Shapes: ``B`` sequences, ``T`` new tokens of one, ``M`` rows (the new tokens of all), ``G`` rows that look at their
keys one by one, ``S`` key length, ``N`` heads, ``K`` KV heads, ``H`` head_dim, ``R`` rotated features of a head, ``I``
in_features, ``O`` out_features, ``D`` hidden_size, ``F`` intermediate_size, ``V`` vocab_size.

Source: Yu et al. 2022, "Orca", section 3.2: what is not attention need not know whose token a row is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from bpe_llama.model.backends.cpu.decoder import FusedDecoder
from bpe_llama.model.backends.cpu.decoder_parts import Workspace, write_turned
from bpe_llama.model.backends.cpu.native import CompiledAttention, reads_prompts
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.layers.attention_backends import Visible, sdpa
from bpe_llama.model.layers.rope import Rotation
from bpe_llama.model.layers.rope_scaling import LENGTH_DEPENDENT
from bpe_llama.model.llama import LlamaModel


class PackedDecoder:
    """Computes the logits that follow new ids of several sequences, as the model does, sooner.

    Args:
        fused: Whose layers are used, as it last refreshed them.
    """

    def __init__(self, fused: FusedDecoder) -> None:
        self.fused = fused
        self._space: tuple[int, Workspace] | None = None

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache, every: bool = False) -> Tensor:
        """Return the logits after each sequence's last new id, (B, V).

        Args:
            ids: New ids of each slot, one at least.
            cache: A full one; read, and extended by them.
            every: Return the logits after each of the new ids instead, (M, V).

        Raises:
            ValueError: If an id is outside the vocabulary, a slot has none or no room left, or there are other slots
                than sequences.
        """
        model = self.fused.model
        rows = _Rows(self.fused, ids, cache)
        space = self._workspace(len(rows.ids_M))
        space.x_MD.copy_(model.model.embed_tokens.weight[rows.ids_M])
        with space.looking_at(rows.keys_for_torch):
            for number in range(len(self.fused.layers)):
                self.fused.begin_layer(number, space)
                rows.attend(number, space, cache)
                self.fused.end_layer(number, space, space.gathered_MO)
        cache.lengths[:] = rows.ends
        wanted_MD = space.x_MD if every else space.x_MD[rows.last_B]
        return self.fused.logits(wanted_MD, wanted_MD.new_empty(len(wanted_MD), model.config.vocab_size))

    def _workspace(self, rows: int) -> Workspace:
        if self._space is None or self._space[0] != rows:
            self._space = None  # its memory serves the next
            self._space = rows, self.fused.workspace(rows)
        return self._space[1]


class _Rows:
    """Whose token each row of a pass is, where it goes, and what it may look at."""

    def __init__(self, fused: FusedDecoder, ids: Sequence[Sequence[int]], cache: KVCache) -> None:
        stack, held = fused.model.model, cache.lengths
        config = stack.config
        counts = [len(new) for new in ids]
        if len(ids) != cache.batch_size or not all(counts):
            raise ValueError(f"{counts} new ids for {cache.batch_size} slots; expected at least one for each")
        self.ends = [before + new for before, new in zip(held, counts, strict=True)]
        if max(self.ends) > cache.capacity:
            slot = self.ends.index(max(self.ends))
            raise ValueError(
                f"slot {slot} holds {held[slot]} tokens and {counts[slot]} more exceed the cache's {cache.capacity}"
            )
        flat = [new_id for new in ids for new_id in new]
        outside = next((new_id for new_id in flat if not 0 <= new_id < config.vocab_size), None)
        if outside is not None:
            raise ValueError(f"input id {outside} is outside the vocabulary of {config.vocab_size}")
        self.ids_M = torch.tensor(flat, device="cpu")
        stops = list(accumulate(counts))
        self.last_B = torch.tensor(stops, device="cpu") - 1
        counts_B = torch.tensor(counts, device="cpu")
        self.slots_M = torch.arange(len(ids), device="cpu").repeat_interleave(counts_B)
        shift_B = torch.tensor(self.ends, device="cpu") - self.last_B - 1
        self.positions_M = torch.arange(len(flat), device="cpu") + shift_B[self.slots_M]
        cos_MR, sin_MR = self._rotation(stack, counts, cache.prompt_lengths)
        self._window = config.sliding_window
        counts_M = counts_B.repeat_interleave(counts_B)
        all_alone = fused.compiles(len(flat)) or reads_prompts()
        self._alone_G = torch.nonzero((counts_M == 1) | all_alone).flatten()
        """Rows that look at their keys one by one, in the compiled core: of sequences that bring one new id, or all."""
        self._alone: CompiledAttention | None = None
        if len(self._alone_G):
            slots_G, columns_G, *rotation = (
                part[self._alone_G] for part in (self.slots_M, self.positions_M, cos_MR, sin_MR)
            )
            self._alone = CompiledAttention(cache, slots_G, columns_G, (rotation[0], rotation[1]), self._window)
        self._turning = torch.cat((cos_MR, cos_MR), dim=-1)[:, None], sin_MR[:, None]
        """Cosines (M, 1, R) and sines (M, 1, R / 2) as `write_turned` takes them."""
        self._readers = []
        for slot, (stop, count, end) in enumerate(zip(stops, counts, self.ends, strict=True)):
            if count > 1 and not all_alone:
                visible = Visible(causal=True)
                if end > count or not self._sees_all(end):
                    visible = Visible(mask=self._mask(self.positions_M[None, stop - count : stop], end)[:, None])
                self._readers.append((slot, slice(stop - count, stop), end, visible))
        self.keys_for_torch = sum((rows.stop - rows.start) * end for _, rows, end, _ in self._readers)

    def _sees_all(self, end: int) -> bool:
        return self._window is None or self._window >= end

    def _mask(self, query_BT: Tensor, end: int) -> Tensor:
        """Return which of the first keys each query may look at, (B, T, S)."""
        key_S, query_BT1 = torch.arange(end, device="cpu"), query_BT[..., None]
        mask_BTS = key_S <= query_BT1
        return mask_BTS if self._window is None else mask_BTS & (key_S > query_BT1 - self._window)

    def _rotation(self, stack: LlamaModel, counts: list[int], prompt_lengths: list[int]) -> Rotation:
        """Return cosines and sines, (M, R / 2)."""
        parts, lengths = [self.positions_M], [0]
        if stack.config.rope["rope_type"] in LENGTH_DEPENDENT:  # on that of each sequence
            parts, lengths = list(torch.split(self.positions_M, counts)), prompt_lengths
        rotations = [stack.rotary_emb(part[None], [length]) for part, length in zip(parts, lengths, strict=True)]
        cos_MR, sin_MR = (torch.cat(angles, dim=1)[0] for angles in zip(*rotations, strict=True))
        return cos_MR, sin_MR

    def attend(self, layer: int, space: Workspace, cache: KVCache) -> None:
        """Extend the cache, and write what each row gathers from the keys of its sequence."""
        if self._alone is not None:
            self._attend_alone(self._alone, layer, space)
        if not self._readers:
            return
        write_turned(space, *self._turning)
        key_BKSH, value_BKSH = cache.keys[layer], cache.values[layer]
        space.query_MNH.copy_(space.turned_query_MNH)
        for slot, rows, end, visible in self._readers:
            key_KSH, value_KSH = (part[slot, :, :end] for part in (key_BKSH, value_BKSH))
            new = slice(end - (rows.stop - rows.start), end)
            key_KSH[:, new] = space.turned_key_MKH[rows].transpose(0, 1)
            value_KSH[:, new] = space.value_MKH[rows].transpose(0, 1)
            query_1NTH = space.query_MNH[rows].transpose(0, 1)[None]
            out_1NTH = sdpa(query_1NTH, key_KSH[None], value_KSH[None], visible)
            space.gathered_MO[rows] = out_1NTH[0].transpose(0, 1).flatten(1)

    def _attend_alone(self, attention: CompiledAttention, layer: int, space: Workspace) -> None:
        """Do so for rows that look at their keys one by one."""
        if not self._readers and space.qkv_MO.dtype == torch.float32:
            attention.into(layer, space.qkv_MO, space.gathered_MO)
            return
        rows = self._alone_G if self._readers else slice(None)
        qkv_GO = space.qkv_MO[rows].float()
        gathered_GO = qkv_GO.new_empty(len(qkv_GO), space.gathered_MO.shape[1])
        attention.into(layer, qkv_GO, gathered_GO)
        space.gathered_MO[rows] = gathered_GO.to(space.gathered_MO.dtype)
