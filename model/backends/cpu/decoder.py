"""The native CPU decoder: a forward pass over a ragged batch, with the logits of `llama.py` in fewer and larger steps.

Queries, keys and values are one product, gate and up another; residuals are added by the product before them; memory is
kept from pass to pass. Rows of all sequences lie one after the other without padding, so that every product serves all
of them; only attention treats sequences one by one. The tests compare every way through it with the model.

A pass combines a `LayerBackend` (native kernels or PyTorch) with an attention (``attention.py``); ``dispatch.py`` says
which.

Shapes: ``B`` sequences, ``M`` rows (the new tokens of all), ``D`` hidden_size, ``R`` rotated features of a head, ``V``
vocab_size.

Source: Yu et al. 2022, "Orca", section 3.2: only attention depends on the sequence that a row belongs to.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from bpe_llama.model.backends.adjacent import adjacent
from bpe_llama.model.backends.cpu.attention import AttentionKind, FullCacheAttention, RaggedBatch, UniformAttention
from bpe_llama.model.backends.cpu.dispatch import FEW_ROWS, has_native_kernels, native_rows
from bpe_llama.model.backends.cpu.native import NativeLayers, NativeWeights
from bpe_llama.model.backends.cpu.torch_layers import TorchLayers, TorchWeights, weight_parts
from bpe_llama.model.backends.cpu.weight_layout import lay_out_weights, make_readable
from bpe_llama.model.backends.cpu.workspace import Workspace
from bpe_llama.model.backends.layer_parts import embedding_scale, layer_parts
from bpe_llama.model.backends.norms import Norm
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.layers.rope import Rotation
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.windows import sliding_windows

_LAYING_OUT = threading.Lock()


class LayerBackend(Protocol):
    """Runs a model's layers, attention excepted, on the M rows of a workspace."""

    native: bool
    """Whether by native kernels, with float32 activations."""
    space: Workspace

    def project_qkv(self, layer: int) -> None:
        """Write queries, keys and values of a layer to ``space.qkv_MO``."""

    def finish_layer(self, layer: int) -> None:
        """Add output projection and feed-forward block of a layer to ``space.x_MD``."""

    def threads(self, keys: int) -> AbstractContextManager[None]:
        """Return the context of a pass in which PyTorch's attention has ``keys`` query rows times keys a layer."""


class CpuDecoder:
    """Computes the logits of new tokens, as the model does, sooner.

    The model's weights are moved into one buffer first, if they are not there yet (see `lay_out_weights`), and shared.
    One object serves one thread.

    Args:
        model: One that `can_decode` accepts.
    """

    ragged = True

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        config = model.config
        places = zip(layer_parts(model), sliding_windows(config.windows), config.rotated_layers, strict=True)
        self._kinds = [
            AttentionKind(window, rotated, layer.interleaved, layer.softcap) for layer, window, rotated in places
        ]
        """Of the layers."""
        self._few: dict[int, LayerBackend] = {}
        self._many: dict[int, LayerBackend] = {}
        """Layers with their memory by number of rows: all up to FEW_ROWS, and the last larger one."""
        self._kept_logits: dict[tuple[int, torch.dtype], Tensor] = {}
        """Memory for logits by number of rows and dtype."""
        self._norms: list[Norm] = []
        self._fingerprint: list[tuple[int, int]] = []
        self.refresh()

    def refresh(self) -> None:
        """Use the model's present weights, whatever was done to it since."""
        with _LAYING_OUT:
            fingerprint = self._weights_in_memory()
            if self._fingerprint and self._fingerprint == fingerprint:
                for norm in self._norms:
                    norm.refresh()
                return
            make_readable(self.model)
            self._embedding_scale = embedding_scale(self.model)
            layers = layer_parts(self.model)
            shared = [linears for layer in layers for linears in layer.together]
            plain = [linears for linears in shared if all(type(linear) is nn.Linear for linear in linears)]
            storages = {linears[0].weight.untyped_storage().data_ptr() for linears in plain}
            scattered = any(adjacent(tensors) is None for linears in plain for tensors in weight_parts(linears))
            if scattered or len(storages) > 1:
                lay_out_weights(self.model)
                layers = layer_parts(self.model)  # of the moved weights
            linears = [linear for layer in layers for linear in layer.linears]
            head, last_norm = self.model.lm_head, Norm(self.model.model.norm)
            self._norms = [last_norm, *(norm for layer in layers for norm in layer.norms)]
            self._torch = TorchWeights(layers, head, last_norm)
            self._native: NativeWeights | None = None
            self._native_rows = 0
            if has_native_kernels([head, *linears]):
                self._native, self._native_rows = NativeWeights(layers, head, last_norm), native_rows(linears)
            self._few.clear()
            self._many.clear()
            self._kept_logits.clear()  # the vocabulary may have another size
            self._fingerprint = self._weights_in_memory()

    def _weights_in_memory(self) -> list[tuple[int, int]]:
        return [
            (id(module), weight.data_ptr())
            for module in self.model.modules()
            for weight in (*module._parameters.values(), *module._buffers.values())
            if weight is not None
        ]

    @torch.inference_mode()
    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache, every: bool = False) -> Tensor:
        """Return the logits after each sequence's last new id, (B, V), in memory that the next call may overwrite.

        Args:
            ids: New ids of each slot, at least one; equally many for every slot unless the cache is a full one.
            cache: Read, and extended by the new ids.
            every: Return the logits after each new id, (M, V).

        Raises:
            ValueError: If an id is outside the vocabulary, a slot has none or no room left, or the number of slots
                differs; or if a full cache is of another dtype than float32 and bfloat16.
        """
        config = self.model.config
        batch = RaggedBatch(ids, cache, config.vocab_size)
        layers = self._layers(len(batch.slots))
        space = layers.space
        space.x_MD.copy_(self.model.model.embed_tokens.weight[batch.ids_M])
        if self._embedding_scale is not None:
            space.x_MD.copy_(self._embedding_scale(space.x_MD))
        attentions = {kind: self._attention(batch, cache, layers.native, kind) for kind in set(self._kinds)}
        with layers.threads(max(attention.torch_keys for attention in attentions.values())):
            for layer, kind in enumerate(self._kinds):
                layers.project_qkv(layer)
                attentions[kind](layer, space)
                layers.finish_layer(layer)
        cache.lengths[:] = batch.ends
        if every or len(batch.slots) == len(ids):
            return self._logits(space.x_MD)
        return self._logits(space.x_MD[torch.tensor(batch.stops, device="cpu") - 1])

    def _attention(
        self, batch: RaggedBatch, cache: KVCache, native: bool, kind: AttentionKind
    ) -> FullCacheAttention | UniformAttention:
        """Return the attention of the layers of a kind."""
        rotation = self._rotation(batch, cache.prompt_lengths, kind.window)
        if not kind.rotated:
            rotation = torch.ones_like(rotation[0]), torch.zeros_like(rotation[1])
        if type(cache) is KVCache:
            return FullCacheAttention(batch, cache, rotation, kind, native)
        return UniformAttention(batch, cache, rotation, kind, self.model.config, self.model.dtype)

    def _rotation(self, batch: RaggedBatch, prompt_lengths: list[int], window: int | None) -> Rotation:
        """Return cosines and sines of all rows, (M, R / 2)."""
        stack = self.model.model
        rotary = stack.rotary_emb if window is None or stack.local_rotary_emb is None else stack.local_rotary_emb
        parts, lengths = [batch.positions_M], [0]
        if rotary.length_dependent:  # on the length of each sequence
            parts, lengths = list(torch.split(batch.positions_M, batch.counts)), prompt_lengths
        rotations = [rotary(part[None], [length]) for part, length in zip(parts, lengths, strict=True)]
        cos_MR, sin_MR = (torch.cat(angles, dim=1)[0] for angles in zip(*rotations, strict=True))
        return cos_MR, sin_MR

    def _layers(self, rows: int) -> LayerBackend:
        """Return the layers that serve this number of rows, with memory for them."""
        kept = self._few if rows <= FEW_ROWS else self._many
        if rows not in kept:
            if rows > FEW_ROWS:
                kept.clear()  # frees its memory first
            kept[rows] = self._new_layers(rows)
        return kept[rows]

    def _new_layers(self, rows: int) -> LayerBackend:
        interleaved = self._kinds[0].interleaved
        if self._native is not None and rows <= self._native_rows:
            return NativeLayers(self._native, Workspace(self.model, rows, torch.float32, interleaved))
        return TorchLayers(self._torch, Workspace(self.model, rows, self.model.dtype, interleaved))

    def _logits(self, x_MD: Tensor) -> Tensor:
        key = len(x_MD), x_MD.dtype
        logits_MV = self._kept_logits.get(key)
        if logits_MV is None:
            logits_MV = x_MD.new_empty(len(x_MD), self.model.config.vocab_size)
            if len(x_MD) <= FEW_ROWS:
                self._kept_logits[key] = logits_MV
        if self._native is not None and x_MD.dtype == torch.float32 and len(x_MD) <= self._native_rows:
            self._native.write_logits(x_MD, logits_MV)
        else:
            self._torch.write_logits(x_MD, logits_MV)
        if self.model.finish is not None:
            logits_MV.copy_(self.model.finish(logits_MV))
        return logits_MV
