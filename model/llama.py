"""LLaMA, top to bottom: embed, then layer by layer attend and transform, then score every token of the vocabulary.

Shapes: ``B`` batch, ``T`` query length, ``S`` key length, ``D`` hidden_size, ``V`` vocab_size.

This file knows ids and tensors: no text, no files, no sampling. Module names are the keys of a Hugging Face checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bpe_llama.model.cache.kv_cache import KVCache, Places
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers.attention import Attention, visible_keys
from bpe_llama.model.layers.attention_backends import Visible
from bpe_llama.model.layers.loss import IGNORED, chunked_next_token_loss, next_token_loss
from bpe_llama.model.layers.mlp import MLP
from bpe_llama.model.layers.moe import MixtureOfExperts, routing_loss
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.layers.rope import NoRotation, RotaryEmbedding, Rotation, SinusoidalEmbedding, positions_of
from bpe_llama.model.pretrained import Pretrained, check_ids


class DecoderLayer(nn.Module):
    """One layer: attention, then the feed-forward block, each on a normalised input and added to what came in."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation,
        visible: Visible,
        cache: KVCache | None = None,
        places: Places | None = None,
    ) -> Tensor:
        """Return the hidden states after this layer, (B, T, D)."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotation, visible, cache, places)
        return x_BTD + self.feed_forward(self.post_attention_layernorm(x_BTD))

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """Return what each token makes of its own features, (B, T, D)."""
        out: Tensor = self.mlp(x_BTD)
        return out


class MixtureDecoderLayer(DecoderLayer):
    """A layer whose feed-forward block is a mixture of experts (Mixtral)."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__(config, layer)
        del self.mlp
        self.block_sparse_moe = MixtureOfExperts(config)

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """Return what each token's experts make of its features, (B, T, D)."""
        out: Tensor = self.block_sparse_moe(x_BTD)
        return out


class LlamaModel(Pretrained):
    """The stack without a head: ids to hidden states.

    Source: Touvron et al. 2023, arXiv:2302.13971.
    """

    def build(self, config: LlamaConfig) -> None:
        """Make the modules; their weights are set later."""
        # An nn.Embedding made in the usual way draws its numbers, which on the meta device costs seconds of imports.
        empty = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=empty)
        layer_type = MixtureDecoderLayer if config.num_local_experts else DecoderLayer
        self.layers = nn.ModuleList(layer_type(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config) if config.position_encoding == "rotary" else NoRotation()
        sinusoidal = config.position_encoding == "sinusoidal"
        self.position_emb = SinusoidalEmbedding(config.hidden_size) if sinusoidal else None
        self.gradient_checkpointing = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
    ) -> Tensor:
        """Return the normalised hidden states, (B, T, D).

        Args:
            input_ids: int64 (B, T).
            attention_mask: (B, S), zero where a column is padding; S counts the cached columns too.
            position_ids: int64 (B, T) or (1, T); counted from the mask and the cache by default.
            past_key_values: Read, and extended by T tokens.

        Raises:
            ValueError: If shapes do not fit, an id is outside the vocabulary, or the cache is full.
        """
        batch, length = check_ids(input_ids, self.config.vocab_size)
        places = past_key_values.place(batch, length) if past_key_values else None
        visible = visible_keys(length, places, attention_mask, input_ids.device, self.config.sliding_window)
        if position_ids is None:
            position_ids = self._positions(length, attention_mask, places, input_ids.device)

        x_BTD = self.embed_tokens(input_ids)
        if self.position_emb is not None:
            x_BTD = x_BTD + self.position_emb(position_ids).to(x_BTD.dtype)
        rotation = self.rotary_emb(position_ids, past_key_values.prompt_lengths if past_key_values else ())
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                if past_key_values is not None:
                    raise ValueError("gradient checkpointing computes layers twice, which a cache cannot bear; use one")
                x_BTD = checkpoint(layer, x_BTD, rotation, visible, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, rotation, visible, past_key_values, places)
        if past_key_values is not None:
            past_key_values.advance(length)
        normed: Tensor = self.norm(x_BTD)
        return normed

    @staticmethod
    def _positions(length: int, mask: Tensor | None, places: Places | None, device: torch.device) -> Tensor:
        if mask is not None:
            return positions_of(mask)[:, -length:]
        if places is not None and places.positions is not None:
            return places.positions
        end = places.end if places else length
        return torch.arange(end - length, end, device=device)[None]


@dataclass
class CausalLMOutput:
    """What a causal LM returns: ``logits`` (B, T, V) and, where labels were given, the mean ``loss``, float32."""

    logits: Tensor
    loss: Tensor | None = None
    past_key_values: KVCache | None = None


class LlamaForCausalLM(Pretrained):
    """A LLaMA that predicts the next token.

    Example:
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> model = LlamaForCausalLM(config, seed=0)
        >>> out = model(torch.tensor([[1, 5, 7]]), labels=torch.tensor([[1, 5, 7]]))
        >>> out.logits.shape, out.loss.ndim
        (torch.Size([1, 3, 32]), 0)
    """

    def build(self, config: LlamaConfig) -> None:
        """Make the modules; their weights are set later."""
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def tie_weights(self) -> None:
        """Make the head share the embedding's matrix, where the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: int | None = None,
    ) -> CausalLMOutput:
        """Return the logits of the token after each position and, given labels, the loss.

        Args:
            input_ids: int64 (B, T).
            attention_mask: (B, S), zero where a column is padding; S counts the cached columns too.
            position_ids: int64 (B, T) or (1, T); counted from the mask and the cache by default.
            past_key_values: A `KVCache`, read and extended by T tokens.
            labels: int64 (B, T), usually ``input_ids`` themselves: the shift happens here. -100 is ignored.
            logits_to_keep: Score only this many last positions; 0 scores all.
            num_items_in_batch: Divide the summed loss by this instead of by the number of labels here: the learned
                tokens of all the batches whose gradients are added up.

        Raises:
            ValueError: If shapes do not fit, an id or label is outside the vocabulary, or the cache is full.
        """
        hidden_BTD = self.model(input_ids, attention_mask, position_ids, past_key_values)
        logits_BTV = self.lm_head(hidden_BTD[:, -logits_to_keep:] if logits_to_keep else hidden_BTD)
        loss = None
        if labels is not None:
            if logits_to_keep:
                raise ValueError("labels score every position; leave logits_to_keep at 0")
            loss = next_token_loss(logits_BTV, labels, num_items_in_batch)
            loss = self._with_routing(loss, labels, attention_mask, num_items_in_batch)
        return CausalLMOutput(logits_BTV, loss, past_key_values)

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        chunk_size: int = 1024,
        num_items_in_batch: int | None = None,
    ) -> Tensor:
        """Return the loss alone, float32, never holding the logits of more than ``chunk_size`` positions.

        Equal to ``model(input_ids, labels=labels, ...).loss``; with a vocabulary of 128,000 the memory saved is most of
        what a training step takes. The head is computed a second time in the backward pass.
        """
        hidden_BTD = self.model(input_ids, attention_mask)
        loss = chunked_next_token_loss(hidden_BTD, self.lm_head, labels, chunk_size, num_items_in_batch)
        return self._with_routing(loss, labels, attention_mask, num_items_in_batch)

    def _with_routing(
        self, loss: Tensor, labels: Tensor, attention_mask: Tensor | None, num_items_in_batch: int | None
    ) -> Tensor:
        if self.training and self.config.num_local_experts:
            routing = routing_loss(self, self.config, attention_mask)
            if num_items_in_batch is not None:  # of several batches, each counts by what is learned of it
                routing = routing * ((labels[:, 1:] != IGNORED).sum() / num_items_in_batch)
            return loss + routing
        return loss

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """Return prompts and what follows them, int64 (B, T + new); see `bpe_llama.model.generation.generate`."""
        from bpe_llama.model.generation.generate import generate

        return generate(self, input_ids, attention_mask, **options)
