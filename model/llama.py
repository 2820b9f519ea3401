"""LLaMA, top to bottom: token embedding, decoder layers, final norm, language-model head.

Shapes: ``B`` batch, ``T`` query length, ``S`` key length, ``D`` hidden_size, ``V`` vocab_size.

This file knows ids and tensors: no text, no files, no sampling. Module names are the keys of a Hugging Face checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bpe_llama._arguments import instance, integer
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.layers.attention import Attention, visible_keys
from bpe_llama.model.layers.documents import Documents
from bpe_llama.model.layers.embedding import token_embedding
from bpe_llama.model.layers.loss import IGNORED, chunked_next_token_loss, labels_within_documents, next_token_loss
from bpe_llama.model.layers.matmul.products import recomputed, training_products
from bpe_llama.model.layers.mlp import MLP
from bpe_llama.model.layers.moe import routing_loss
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.layers.rope import (
    NoRotation,
    RotaryEmbedding,
    Rotation,
    SinusoidalEmbedding,
    new_positions,
    rotations_of_layers,
)
from bpe_llama.model.pretrained import Pretrained, check_ids

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bpe_llama.model.sampling.keywords import GenerateKeywords


class DecoderLayer(nn.Module):
    """One layer: attention, then the feed-forward block, each with a pre-norm and a residual connection."""

    attention_class: ClassVar[type[Attention]] = Attention
    norm_class: ClassVar[type[Any]] = RMSNorm

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = self.attention_class(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = self.norm_class(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = self.norm_class(config.hidden_size, config.norm_eps)

    def forward(self, x_BTD: Tensor, *context: Any) -> Tensor:
        """Return the hidden states after this layer, (B, T, D); `Attention.forward` documents ``context``."""
        x_BTD = x_BTD + self.attention_branch(x_BTD, *context)
        return x_BTD + self.mlp_branch(x_BTD)

    def attention_branch(self, x_BTD: Tensor, *context: Any) -> Tensor:
        """Return what attention adds to the hidden states, (B, T, D)."""
        return self.self_attn(self.input_layernorm(x_BTD), *context)

    def mlp_branch(self, x_BTD: Tensor) -> Tensor:
        """Return what the MLP adds to the hidden states, (B, T, D)."""
        return self.feed_forward(self.post_attention_layernorm(x_BTD))

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """Return the output of the MLP, (B, T, D)."""
        return self.mlp(x_BTD)


class LlamaModel(Pretrained):
    """The decoder without a head: ids to hidden states. Its modules are those of the config's family.

    Source: Touvron et al. 2023, arXiv:2302.13971.
    """

    def build(self, config: LlamaConfig) -> None:
        """Create the modules; their weights are initialized later."""
        family = config.family
        self.embed_tokens = (family.embedding or token_embedding)(config)
        self.layers = nn.ModuleList(family.layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = family.layer.norm_class(config.hidden_size, config.norm_eps)
        self.rotary_emb = RotaryEmbedding(config) if config.position_encoding == "rotary" else NoRotation()
        self.local_rotary_emb = RotaryEmbedding(config, config.local_rope) if config.local_rope else None
        sinusoidal = config.position_encoding == "sinusoidal"
        self.position_emb = SinusoidalEmbedding(config.hidden_size) if sinusoidal else None
        self.gradient_checkpointing = 0  # recompute every k-th layer in the backward pass; 0: none

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the normalized hidden states, (B, T, D).

        Args:
            input_ids: int64 (B, T).
            attention_mask: (B, S), zero for padding; S includes the cached columns.
            position_ids: int64 (B, T) or (1, T); by default they follow from the mask and the cache.
            past_key_values: The cache, to which the T tokens are appended.
            document_ids: int64 (B, T), the number of each token's document in its row: attention does not cross
                documents, and positions restart. A document is a run of equal numbers.

        Raises:
            ValueError: If shapes do not fit, an id is outside the vocabulary, the cache is full or another model's, or
                there are both a cache and `document_ids`.
        """
        input_ids = check_ids(input_ids, self.config.vocab_size)
        batch, length = input_ids.shape
        for name, tensor in (("position_ids", position_ids), ("document_ids", document_ids)):
            if tensor is not None:
                instance(name, tensor, Tensor, "a tensor, (batch, length)")
        if position_ids is not None and tuple(position_ids.shape) not in ((batch, length), (1, length)):
            raise ValueError(
                f"position_ids has shape {tuple(position_ids.shape)}; expected ({batch}, {length}) or (1, {length})"
            )
        if isinstance(attention_mask, Tensor) and (attention_mask.ndim != 2 or attention_mask.shape[0] != batch):
            found = tuple(attention_mask.shape)
            raise ValueError(f"attention_mask has shape {found}; expected ({batch}, S), one row for each of input_ids")
        if past_key_values is not None:
            instance("past_key_values", past_key_values, KVCache)
            past_key_values.check_model(self.config, self.dtype)
        documents = None
        if document_ids is not None:
            if past_key_values is not None:
                raise ValueError("document_ids and past_key_values are given; a slot of a cache holds one sequence")
            documents = Documents.of(document_ids, input_ids)
        columns = past_key_values.place(batch, length) if past_key_values else None
        windows = self.config.windows
        visible = {
            window: visible_keys(length, columns, attention_mask, input_ids.device, window, documents)
            for window in set(windows)
        }
        if position_ids is None and documents is not None:
            position_ids = documents.positions(attention_mask)
        elif position_ids is None:
            position_ids = new_positions(length, attention_mask, columns, input_ids.device)

        x_BTD = self.embed_tokens(input_ids)
        if self.position_emb is not None:
            x_BTD = x_BTD + self.position_emb(position_ids).to(x_BTD.dtype)
        prompt_lengths = past_key_values.prompt_lengths if past_key_values else ()
        rotations = self.rotations(position_ids, prompt_lengths, documents)
        for index, layer in enumerate(self.layers):
            rotation, seen = rotations[index], visible[windows[index]]
            if self.gradient_checkpointing and self.training and index % self.gradient_checkpointing == 0:
                if past_key_values is not None:
                    raise ValueError("gradient checkpointing computes layers twice, which a cache cannot bear; use one")
                x_BTD = recomputed(layer, x_BTD, rotation, seen)
            else:
                x_BTD = layer(x_BTD, rotation, seen, past_key_values, columns)
        if past_key_values is not None:
            past_key_values.advance(length)
        return self.norm(x_BTD)

    def rotations(
        self, positions_BT: Tensor, prompt_lengths: Sequence[int] = (), documents: Documents | None = None
    ) -> list[Rotation]:
        """Return the rotation of each layer; for the arguments see `RotaryEmbedding`."""
        whole: Rotation = self.rotary_emb(positions_BT, prompt_lengths, documents)
        local = self.local_rotary_emb(positions_BT, prompt_lengths, documents) if self.local_rotary_emb else whole
        return rotations_of_layers(self.config, whole, local, positions_BT)


@dataclass
class CausalLMOutput:
    """The output of a causal LM: ``logits`` (B, T, V) and, if labels were given, the mean ``loss``, float32."""

    logits: Tensor
    loss: Tensor | None = None
    past_key_values: KVCache | None = None


class LlamaForCausalLM(Pretrained):
    """A LLaMA that predicts the next token.

    Example:
        >>> import torch
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        >>> model = LlamaForCausalLM(config, seed=0)
        >>> out = model(torch.tensor([[1, 5, 7]]), labels=torch.tensor([[1, 5, 7]]))
        >>> out.logits.shape, out.loss.ndim
        (torch.Size([1, 3, 32]), 0)
    """

    def build(self, config: LlamaConfig) -> None:
        """Create the modules; their weights are initialized later."""
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.finish = config.family.logits(config) if config.family.logits else None

    def tie_weights(self) -> None:
        """Tie ``lm_head`` to the embedding if the config has ``tie_word_embeddings``."""
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
        document_ids: Tensor | None = None,
    ) -> CausalLMOutput:
        """Return the logits of the token after each position and, given labels, the loss.

        Args:
            input_ids: int64 (B, T).
            attention_mask: (B, S), zero for padding; S includes the cached columns.
            position_ids: int64 (B, T) or (1, T); by default they follow from the mask and the cache.
            past_key_values: The cache, to which the T tokens are appended.
            labels: int64 (B, T), usually ``input_ids``: they are shifted here. -100 is ignored.
            logits_to_keep: Compute the logits of this many last positions; 0 computes all.
            num_items_in_batch: Divide the summed loss by this number instead of by the number of labels: with gradient
                accumulation, the learned tokens of all batches.
            document_ids: int64 (B, T), the number of each token's document in its row: attention does not cross
                documents, and positions restart. A document is a run of equal numbers; its first token has no loss.

        Raises:
            ValueError: If shapes do not fit, an id or label is outside the vocabulary, the cache is full or another
                model's, or there are both a cache and `document_ids`.
        """
        if labels is not None:
            instance("labels", labels, Tensor, "a tensor, (batch, length)")
        if type(logits_to_keep) is not int or logits_to_keep < 0:  # a negative one would drop the first positions
            logits_to_keep = integer("logits_to_keep", logits_to_keep, 0)
        hidden_BTD = self.model(input_ids, attention_mask, position_ids, past_key_values, document_ids)
        logits_BTV = self.logits(hidden_BTD[:, -logits_to_keep:] if logits_to_keep else hidden_BTD)
        loss = None
        if labels is not None:
            if logits_to_keep:
                raise ValueError("labels need the logits of all positions; expected logits_to_keep 0")
            labels = labels_within_documents(labels, document_ids)
            loss = next_token_loss(logits_BTV, labels, num_items_in_batch)
            loss = self._with_routing(loss, labels, attention_mask, num_items_in_batch)
        return CausalLMOutput(logits_BTV, loss, past_key_values)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of normalized hidden states, (..., V)."""
        product: Tensor = self.lm_head(hidden)
        return product if self.finish is None else self.finish(product)

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        chunk_size: int | None = None,
        num_items_in_batch: int | None = None,
        document_ids: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor:
        """Return the loss alone, a float32 scalar equal to ``model(input_ids, labels=labels, ...).loss`` but rounding.

        The options are those of `bpe_llama.model.layers.loss.next_token.chunked_next_token_loss`.

        Cost: memory for the logits of ``chunk_size`` positions instead of all, most of a training step's memory at a
        vocabulary of 128,000. Float32 products are those of `bpe_llama.model.layers.matmul.products.training_products`.
        """
        instance("labels", labels, Tensor, "a tensor, (batch, length)")
        with training_products():
            hidden_BTD = self.model(input_ids, attention_mask, document_ids=document_ids)
        labels = labels_within_documents(labels, document_ids)
        loss = self.loss_of_hidden(
            hidden_BTD, labels, chunk_size, num_items_in_batch, label_smoothing=label_smoothing, z_loss=z_loss
        )
        return self._with_routing(loss, labels, attention_mask, num_items_in_batch)

    def loss_of_hidden(
        self,
        hidden_BTD: Tensor,
        labels_BT: Tensor,
        chunk_size: int | None = None,
        num_items_in_batch: int | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor:
        """Return `chunked_next_token_loss` of normalized hidden states and this model's head and logits, float32."""
        with training_products():
            return chunked_next_token_loss(
                hidden_BTD,
                self.lm_head,
                labels_BT,
                chunk_size,
                num_items_in_batch,
                finish=self.finish,
                label_smoothing=label_smoothing,
                z_loss=z_loss,
            )

    def _with_routing(
        self, loss: Tensor, labels: Tensor, attention_mask: Tensor | None, num_items_in_batch: int | None
    ) -> Tensor:
        if self.training and self.config.num_local_experts:
            routing = routing_loss(self, self.config, attention_mask, self.over_ranks)
            if num_items_in_batch is not None:  # weight each batch by its learned tokens
                learned = (labels[:, 1:] != IGNORED).sum()
                learned = learned if self.over_ranks is None else self.over_ranks(learned)
                routing = routing * (learned / num_items_in_batch)
            return loss + routing
        return loss

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Unpack[GenerateKeywords]
    ) -> Tensor:
        """Return prompts and generated ids, int64 (B, T + new); see `bpe_llama.model.generation.generate`.

        Args:
            input_ids: int64 (B, T), rows padded on the left.
            attention_mask: (B, T), zero where a row is padded.
            **options: Those of that function, such as ``max_new_tokens``, ``temperature``, ``top_p``, ``num_beams``.
        """
        from bpe_llama.model.generation.generate import generate

        return generate(self, input_ids, attention_mask, **options)
