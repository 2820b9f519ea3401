"""What runs a step on CUDA: which models, caches and options CUDA graphs and Triton kernels support.

| step | needs |
|---|---|
| a CUDA graph of Triton kernels | both functions below return None for the model |
| the graphs of a running engine | `unsupported_by_engine` returns None |
| a CUDA graph of PyTorch operations | `unsupported_by_cuda_graph` and `options_unsupported_by_cuda_graph` return None |
| the modules of `llama.py`, kernel by kernel | nothing |
"""

from __future__ import annotations

import torch
from torch import nn

from bpe_llama.model.backends.layer_parts import has_known_layers, layer_parts
from bpe_llama.model.cache.kv_cache import KVCache
from bpe_llama.model.device import HAS_TRITON
from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.attention_backends import eager, sdpa
from bpe_llama.model.layers.moe import MixtureOfExperts
from bpe_llama.model.layers.rope_scaling import LENGTH_DEPENDENT
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.quantization.layers import Float8Linear, Int4Linear, Int8Linear
from bpe_llama.model.sampling.params import GenerationOptions

TRITON_LINEARS = (nn.Linear, Int8Linear, Int4Linear, Float8Linear)


def batch_sizes(slots: int) -> list[int]:
    """Return the batch sizes of an engine's graphs: powers of two and the number of slots; a pass is padded up to one.

    A step of few sequences reads the same weights whatever their number, so padding costs little.

    Example:
        >>> batch_sizes(24)
        [1, 2, 4, 8, 16, 24]
    """
    return [*(1 << power for power in range((slots - 1).bit_length())), slots]


def unsupported_by_engine(model: LlamaForCausalLM, cache: KVCache) -> str | None:
    """Return why an engine cannot decode a model by CUDA graphs of its own accord; None if it can.

    A graph repeats the branches that it was captured with, so nothing may change them unnoticed.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> unsupported_by_engine(LlamaForCausalLM(config).train(), KVCache(config, 1, 8))
        'the model is in training mode'
    """
    if type(cache) is not KVCache:
        return f"the cache is a {type(cache).__name__}"
    if model.training:
        return "the model is in training mode"
    for name, module in model.named_modules():
        if hasattr(module, "active"):
            return f"{name} has adapters"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has hooks"
    return unsupported_by_cuda_graph(model)


def graph_backend(model: LlamaForCausalLM) -> str | None:
    """Return the ``backend`` of `CudaGraphDecoder` that is fastest for a model.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> graph_backend(LlamaForCausalLM(config)) is None  # on the CPU
        True
    """
    return "triton" if model.device.type == "cuda" and unsupported_by_triton(model) is None else None


def unsupported_by_cuda_graph(model: LlamaForCausalLM, cache: str = "full") -> str | None:
    """Return why a model's step over this form of cache has no fixed shapes, as a graph needs; None if it has.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
        >>> unsupported_by_cuda_graph(LlamaForCausalLM(config))
        "rotary positions of the kind 'dynamic' depend on the length"
    """
    config = model.config
    if cache != "full":
        return f"the cache is of the form {cache!r}"
    if any(isinstance(part, MixtureOfExperts) for part in model.modules()):
        return "the experts of a mixture are chosen anew for every token"
    if config.position_encoding != "rotary":
        return f"position_encoding is {config.position_encoding!r}"
    if config.rope["rope_type"] in LENGTH_DEPENDENT:
        return f"rotary positions of the kind {config.rope['rope_type']!r} depend on the length"
    if any(isinstance(part, Attention) and part.dropout for part in model.modules()):
        return f"attention_dropout is {config.attention_dropout} and the model in training mode"
    if any(part.training and getattr(part, "residual_dropout", 0.0) for part in model.modules()):
        return "features of residuals are dropped, since the model is in training mode"
    if any(isinstance(part, Attention) and part.backend not in (sdpa, eager) for part in model.modules()):
        return "the attention backend is neither 'sdpa' nor 'eager'"
    return None


def options_unsupported_by_cuda_graph(options: GenerationOptions) -> str | None:
    """Return why the step of a CUDA graph cannot serve these options; None if it can.

    Example:
        >>> options_unsupported_by_cuda_graph(GenerationOptions(no_repeat_ngram_size=3))
        'logits processors and further filters run row by row on the host'
    """
    if options.prepares_scores:
        return "logits processors and further filters run row by row on the host"
    if options.constraint is not None:
        return f"{options.constraint.option} is a grammar, which runs on the host"
    if options.penalises and options.penalty_scope != "context":
        return f"penalty_scope is {options.penalty_scope!r}"
    if options.logprobs or options.top_logprobs:
        return "logprobs are recorded on the host"
    return None


def unsupported_by_triton(model: LlamaForCausalLM) -> str | None:
    """Return why the Triton kernels cannot run a model that a CUDA graph supports; None if they can.

    Example:
        >>> from bpe_llama.model.config import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> unsupported_by_triton(LlamaForCausalLM(config, dtype=torch.float16)) is None  # float16's range is too small
        False
    """
    if not HAS_TRITON:
        return "triton is not installed"
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"the model is of {model.dtype}, and the kernels take float32 and bfloat16"
    config = model.config
    if len(set(config.windows)) > 1 or not all(config.rotated_layers):
        return "the layers differ in their sliding windows, or some are not rotated"
    if not has_known_layers(model):
        return "a layer is none that the decoders describe, is hooked or adapted, or shares its weights"
    if model.finish is not None or model.model.local_rotary_emb is not None:
        return "the kernels do not compute scaled or capped logits, nor a RoPE of layers with a sliding window"
    for layer in layer_parts(model):
        if layer.beyond_llama:
            return f"the kernels do not compute {', '.join(layer.beyond_llama)}"
        for linears in (*layer.together, [model.lm_head]):
            names = {type(linear).__name__ for linear in linears}
            kinds = {_kind_of(linear) for linear in linears}
            if len(kinds) > 1 or type(linears[0]) not in TRITON_LINEARS:
                return f"the kernels have no product with layers that share an input and are {', '.join(sorted(names))}"
    return None


def _kind_of(linear: nn.Module) -> tuple[object, ...]:
    """Return what layers must have in common to be adjacent."""
    dtypes = tuple(tensor.dtype for tensor in (*linear.parameters(), *linear.buffers()))
    return type(linear), getattr(linear, "group_size", None), linear.bias is None, dtypes
