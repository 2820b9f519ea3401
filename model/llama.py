"""LLaMA, top to bottom: embed, then layer by layer attend and transform, then score every token of the vocabulary.

Shapes: ``B`` batch, ``T`` query length, ``S`` key length, ``D`` hidden_size, ``V`` vocab_size.

This file knows ids and tensors: no text, no files, no sampling. Module names are the keys of a Hugging Face checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bpe_llama.model.attention import Attention, Visible, visible_keys
from bpe_llama.model.cache import KVCache, Places
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.loss import next_token_loss
from bpe_llama.model.mlp import MLP
from bpe_llama.model.norm import RMSNorm
from bpe_llama.model.rope import RotaryEmbedding, Rotation, positions_of


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
        out: Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return out


class LlamaModel(nn.Module):
    """The stack without a head: ids to hidden states.

    Source: Touvron et al. 2023, arXiv:2302.13971.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        # An nn.Embedding made in the usual way draws its numbers, which on the meta device costs seconds of imports.
        empty = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens: nn.Embedding = nn.Embedding.from_pretrained(empty, freeze=False)  # type: ignore[no-untyped-call]
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)

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
        visible = visible_keys(length, places, attention_mask, input_ids.device)
        if position_ids is None:
            if attention_mask is not None:
                position_ids = positions_of(attention_mask)[:, -length:]
            elif places is not None and places.columns_BT is not None:
                position_ids = places.columns_BT
            else:
                end = places.end if places else length
                position_ids = torch.arange(end - length, end, device=input_ids.device)[None]

        x_BTD = self.embed_tokens(input_ids)
        rotation = self.rotary_emb(position_ids)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotation, visible, past_key_values, places)
        if past_key_values is not None:
            past_key_values.advance(length)
        normed: Tensor = self.norm(x_BTD)
        return normed


@dataclass
class CausalLMOutput:
    """What a causal LM returns: ``logits`` (B, T, V) and, where labels were given, the mean ``loss``, float32."""

    logits: Tensor
    loss: Tensor | None = None
    past_key_values: KVCache | None = None


class LlamaForCausalLM(nn.Module):
    """A LLaMA that predicts the next token.

    Weights are drawn from a generator of their own, so a seed gives the same model whatever else ran before.

    Args:
        config: The shape.
        device: Where the weights go; torch's default device by default (``meta`` allocates nothing).
        dtype: Of the weights; torch's default dtype by default.
        seed: Of the initialisation.

    Example:
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        ...                      num_attention_heads=2, max_position_embeddings=64)
        >>> model = LlamaForCausalLM(config, seed=0)
        >>> out = model(torch.tensor([[1, 5, 7]]), labels=torch.tensor([[1, 5, 7]]))
        >>> out.logits.shape, out.loss.ndim
        (torch.Size([1, 3, 32]), 0)
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        device = torch.get_default_device() if device is None else torch.device(device)
        with torch.device("meta"):  # torch's own initialisation would draw from the global generator
            self.model = LlamaModel(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.config = config
        self.to(dtype or torch.get_default_dtype())
        self.tie_weights()
        if device.type != "meta":
            self.allocate(device)
            self.reset_parameters(seed)

    def allocate(self, device: torch.device) -> None:
        """Give every weight memory on a device, its values not set.

        `nn.Module.to_empty` would do the same, after seconds of imports.
        """
        for module in self.modules():
            for name, weight in module.named_parameters(recurse=False):
                empty = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                setattr(module, name, nn.Parameter(empty, weight.requires_grad))
        self.model.rotary_emb.inv_freq = torch.empty(0, device=device)
        self.model.rotary_emb.reset_frequencies()
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the head share the embedding's matrix, where the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Draw every weight afresh: normal with deviation ``initializer_range``, biases 0, norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim == 1:
                weight.fill_(1.0)
            else:
                drawn = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
                weight.copy_(drawn.normal_(0.0, self.config.initializer_range, generator=generator))

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the weights' number format."""
        return self.model.embed_tokens.weight.dtype

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutput:
        """Return the logits of the token after each position and, given labels, the loss.

        Args:
            input_ids: int64 (B, T).
            attention_mask: (B, S), zero where a column is padding; S counts the cached columns too.
            position_ids: int64 (B, T) or (1, T); counted from the mask and the cache by default.
            past_key_values: A `KVCache`, read and extended by T tokens.
            labels: int64 (B, T), usually ``input_ids`` themselves: the shift happens here. -100 is ignored.
            logits_to_keep: Score only this many last positions; 0 scores all.

        Raises:
            ValueError: If shapes do not fit, an id or label is outside the vocabulary, or the cache is full.
        """
        hidden_BTD = self.model(input_ids, attention_mask, position_ids, past_key_values)
        logits_BTV = self.lm_head(hidden_BTD[:, -logits_to_keep:] if logits_to_keep else hidden_BTD)
        loss = None
        if labels is not None:
            if logits_to_keep:
                raise ValueError("labels score every position; leave logits_to_keep at 0")
            loss = next_token_loss(logits_BTV, labels)
        return CausalLMOutput(logits_BTV, loss, past_key_values)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "auto",
        **options: Any,
    ) -> LlamaForCausalLM:
        """Return the model stored in a folder or file; see `bpe_llama.model.weights.load`.

        Args:
            path: A Hugging Face folder, or a ``.gguf`` file.
            dtype: ``"auto"`` keeps what the checkpoint says.
            device: ``"auto"`` is CUDA where there is one, else the CPU.
            **options: Passed on to the loader.
        """
        from bpe_llama.model.weights import load  # loaders build models, so they come later in the import order

        return load(path, dtype=dtype, device=device, **options)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write ``config.json`` and ``model.safetensors``; see `bpe_llama.model.weights.huggingface.save`."""
        from bpe_llama.model.weights.huggingface import save

        save(self, folder, **options)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """Return prompts and what follows them, int64 (B, T + new); see `bpe_llama.model.generation.generate`."""
        from bpe_llama.model.generation import generate

        return generate(self, input_ids, attention_mask, **options)


def check_ids(input_ids: Tensor, vocab_size: int) -> tuple[int, int]:
    """Return (B, T) of well-formed ids.

    On the CPU the values are checked too; elsewhere that would stall the device, and torch reports them itself.

    Raises:
        ValueError: If ``input_ids`` is not two-dimensional or empty, or an id is outside the vocabulary.
        TypeError: If they are not integers.
    """
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, length), neither of them 0")
    if input_ids.is_floating_point():
        raise TypeError(f"input_ids has dtype {input_ids.dtype}; expected integers")
    if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"input id {low if low < 0 else high} is outside the vocabulary of {vocab_size}")
    return input_ids.shape[0], input_ids.shape[1]
