"""The layers of a model by native kernels (the Rust crate `kernels`), for as many rows as they are faster than PyTorch.

Hidden states are float32 whatever the weights are: between a layer's input and output nothing is rounded but what goes
into the cache, and activations of many rows of a bfloat16 model (see `bpe_llama._core.Linear`).

Shapes: ``M`` rows, ``I`` in_features, ``O`` out_features, ``D`` hidden_size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bpe_llama._core import Linear
from bpe_llama.model.backends.cpu.dispatch import FEW_KEYS
from bpe_llama.model.backends.cpu.workspace import Workspace
from bpe_llama.model.backends.dense import decoder_layers, shared_input
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.llama import DecoderLayer, LlamaForCausalLM
from bpe_llama.model.quantization.quantize import PackedLinear


class Rows:
    """M rows of float32, as a tensor and as a NumPy array of the same memory."""

    def __init__(self, tensor_MI: Tensor) -> None:
        self.tensor, self.array = tensor_MI, tensor_MI.numpy()


class NativeProduct:
    """The product with the adjacent matrices of linear layers that share their input.

    Args:
        linears: Layers with native kernels; their memory is shared.
        norm: Normalises the input first.
        gated: Whether the input is gate and up projections, from which SwiGLU computes the activations.
    """

    def __init__(self, linears: Sequence[nn.Module], norm: RMSNorm | None = None, gated: bool = False) -> None:
        norm_I, eps = (None, 0.0) if norm is None else (_array(norm.weight), norm.eps)
        self.linear = Linear([_matrix(linear) for linear in linears], norm=norm_I, eps=eps, gated=gated)
        self.biases: list[tuple[slice, Tensor]] = []
        end = 0
        for linear in linears:
            start, end = end, end + int(linear.out_features)  # type: ignore[arg-type]  # a number of both kinds
            if isinstance(linear.bias, Tensor):
                self.biases.append((slice(start, end), linear.bias.detach()))

    def into(self, x_MI: Rows, out_MO: Rows, threads: int, add: bool = False) -> None:
        """Write the product to ``out_MO``, or add it there."""
        self.linear.multiply(x_MI.array, out_MO.array, add, threads)
        for part, bias in self.biases:
            out_MO.tensor[:, part].add_(bias)


def _matrix(linear: nn.Module) -> Any:
    """Return a layer's weights as the native kernels take them."""
    if isinstance(linear, PackedLinear):
        return linear.packed_matrix()
    return _array(linear.weight)  # type: ignore[arg-type]  # that of nn.Linear


def _array(weight: Tensor) -> Any:
    """Return a NumPy view of a weight: float32, or the bits of bfloat16."""
    weight = weight.detach()
    return (weight if weight.dtype == torch.float32 else weight.view(torch.uint16)).numpy()


class _Layer:
    """The products of one layer."""

    def __init__(self, layer: DecoderLayer) -> None:
        qkv, gate_up = shared_input(layer)
        self.qkv = NativeProduct(qkv, layer.input_layernorm)
        self.out = NativeProduct([layer.self_attn.o_proj])
        self.gate_up = NativeProduct(gate_up, layer.post_attention_layernorm)
        self.down = NativeProduct([layer.mlp.down_proj], gated=True)


class NativeWeights:
    """The products of a model's layers and of its head."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.layers = [_Layer(layer) for layer in decoder_layers(model)]
        self.head = NativeProduct([model.lm_head], model.model.norm)

    def write_logits(self, x_MD: Tensor, logits_MV: Tensor) -> None:
        """Write the logits of float32 hidden states, float32."""
        self.head.into(Rows(x_MD), Rows(logits_MV), torch.get_num_threads())


class NativeLayers:
    """A `LayerBackend` of native kernels.

    Args:
        weights: Of the model.
        space: In float32.
    """

    native = True

    def __init__(self, weights: NativeWeights, space: Workspace) -> None:
        self.weights, self.space = weights, space
        parts = (space.x_MD, space.qkv_MO, space.attention_MO, space.gate_up_MO)
        self._x_MD, self._qkv_MO, self._attention_MO, self._gate_up_MO = map(Rows, parts)
        self._threads = 1

    def project_qkv(self, layer: int) -> None:
        """Write queries, keys and values of a layer to ``space.qkv_MO``."""
        self.weights.layers[layer].qkv.into(self._x_MD, self._qkv_MO, self._threads)

    def finish_layer(self, layer: int) -> None:
        """Add output projection and feed-forward block of a layer to ``space.x_MD``."""
        products, threads = self.weights.layers[layer], self._threads
        products.out.into(self._attention_MO, self._x_MD, threads, add=True)
        products.gate_up.into(self._x_MD, self._gate_up_MO, threads)
        products.down.into(self._gate_up_MO, self._x_MD, threads, add=True)

    @contextmanager
    def threads(self, keys: int) -> Iterator[None]:
        """Give native products PyTorch's threads for one pass.

        If PyTorch's attention has few keys, PyTorch keeps one thread: its other OpenMP workers would spin on the cores
        that the products need. Exception: a Python thread whose first use of PyTorch falls into such a pass gets one
        PyTorch thread until it sets another number.

        Args:
            keys: Query rows times keys of PyTorch's attention in each layer.
        """
        self._threads = torch.get_num_threads()
        if self._threads == 1 or keys > FEW_KEYS:
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self._threads)
