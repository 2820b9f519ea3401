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

from bpe_llama._core import Linear, normalize
from bpe_llama.model.backends.cpu.dispatch import FEW_KEYS
from bpe_llama.model.backends.cpu.workspace import Workspace
from bpe_llama.model.backends.layer_parts import Gate, GatedBlock, LayerParts, Mixture
from bpe_llama.model.backends.norms import Norm
from bpe_llama.model.quantization.layers import PackedLinear


class Rows:
    """M rows of float32, as a tensor and as a NumPy array of the same memory."""

    def __init__(self, tensor_MI: Tensor) -> None:
        self.tensor, self.array = tensor_MI, tensor_MI.numpy()


class NativeProduct:
    """The product with the adjacent matrices of linear layers that share their input.

    Args:
        linears: Layers with native kernels; their memory is shared.
        norm: Normalizes the input first.
        gate: If the input is gate and up projections, the activation of the gate.
    """

    def __init__(self, linears: Sequence[nn.Module], norm: Norm | None = None, gate: Gate | None = None) -> None:
        norm_I, eps = (None, 0.0) if norm is None else (_array(norm.weight), norm.eps)
        self.linear = Linear([_matrix(linear) for linear in linears], norm=norm_I, eps=eps, gate=gate)
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


class NativeNorm:
    """A norm of some columns in place, in groups of as many as it has factors."""

    def __init__(self, norm: Norm, columns: slice) -> None:
        self.weight, self.eps = _array(norm.weight), norm.eps
        self.start, self.stop = columns.start, columns.stop

    def apply(self, x_MO: Rows, threads: int) -> None:
        """Normalize the columns of ``x_MO``."""
        normalize(x_MO.array, self.weight, self.eps, self.start, self.stop, threads)


class NativeBlock:
    """The products of an MLP or of an expert, the first of which normalizes its input."""

    def __init__(self, block: GatedBlock, norm: Norm | None) -> None:
        self.gate_up = NativeProduct(block.gate_up, norm)
        self.down = NativeProduct([block.down], gate=block.gate)
        self.widths = 2 * block.down.in_features, block.down.out_features

    def output(self, x_MD: Rows, threads: int) -> Tensor:
        """Return the block's output, (M, D)."""
        gate_up_MF, out_MD = (Rows(x_MD.tensor.new_empty(len(x_MD.tensor), width)) for width in self.widths)
        self.gate_up.into(x_MD, gate_up_MF, threads)
        self.down.into(gate_up_MF, out_MD, threads)
        return out_MD.tensor


class NativeMixture:
    """The products of a mixture of experts, which normalize their input.

    Args:
        mixture: Chooses the experts.
        norm: Of the input.
    """

    def __init__(self, mixture: Mixture, norm: Norm | None) -> None:
        self.module = mixture.module
        self.router = NativeProduct([mixture.router], norm)
        self.experts = [NativeBlock(expert, norm) for expert in mixture.experts]
        self.shared: NativeBlock | None = None
        if mixture.shared is not None and mixture.shared_gate is not None:
            self.shared = NativeBlock(mixture.shared, norm)
            self.shared_gate = NativeProduct([mixture.shared_gate], norm)

    def into(self, x_MD: Rows, out_MD: Tensor, threads: int) -> None:
        """Write the weighted sum of the chosen experts' outputs to ``out_MD``, the shared expert's included."""
        out_MD.zero_()
        rows = len(x_MD.tensor)
        logits_ME = Rows(x_MD.tensor.new_empty(rows, len(self.experts)))
        self.router.into(x_MD, logits_ME, threads)
        weights_MC, chosen_MC = self.module.choose(logits_ME.tensor)
        if rows == 1:
            # In the order and with the rounding of several rows: an `alpha` would be multiplied without rounding.
            for expert, weight in sorted(zip(chosen_MC[0].tolist(), weights_MC[0].tolist(), strict=True)):
                out_MD.add_(self.experts[expert].output(x_MD, threads).mul_(weight))
        else:
            for expert in sorted(set(chosen_MC.flatten().tolist())):
                row_P, column_P = (chosen_MC == expert).nonzero(as_tuple=True)
                output_PD = self.experts[expert].output(Rows(x_MD.tensor[row_P]), threads)
                out_MD.index_add_(0, row_P, output_PD.mul_(weights_MC[row_P, column_P][:, None]))
        if self.shared is not None:
            gate_M1 = Rows(x_MD.tensor.new_empty(rows, 1))
            self.shared_gate.into(x_MD, gate_M1, threads)
            # softmax(g, 0)[0] = sigmoid(g), row by row; `sigmoid` rounds the last elements of a tensor in another way.
            share_M2 = torch.cat((gate_M1.tensor, torch.zeros_like(gate_M1.tensor)), dim=1).softmax(1)
            out_MD.add_(self.shared.output(x_MD, threads).mul_(share_M2[:, :1]))


class _Layer:
    """The products and norms of one layer."""

    def __init__(self, layer: LayerParts) -> None:
        self.qkv = NativeProduct(layer.qkv, layer.before_attention)
        self.out = NativeProduct([layer.out])
        self.mixture: NativeMixture | None = None
        if isinstance(layer.mlp, Mixture):
            self.mixture = NativeMixture(layer.mlp, layer.before_mlp)
        else:
            self.mlp = NativeBlock(layer.mlp, layer.before_mlp)
        self.parallel = layer.parallel
        self.head_norms = [NativeNorm(norm, columns) for columns, norm in layer.head_norms]
        width = slice(0, layer.out.out_features)
        self.after_attention, self.after_mlp = (
            None if norm is None else NativeNorm(norm, width) for norm in (layer.after_attention, layer.after_mlp)
        )
        self.query_scale, self.residual_scale = layer.query_scale, layer.residual_scale


class NativeWeights:
    """The products and norms of a model's layers and of its head."""

    def __init__(self, layers: Sequence[LayerParts], head: nn.Module, norm: Norm) -> None:
        self.layers = [_Layer(layer) for layer in layers]
        self.head = NativeProduct([head], norm)

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
        parts = (space.x_MD, space.qkv_MO, space.attention_MO, space.gate_up_MO, space.normed_MD)
        self._x_MD, self._qkv_MO, self._attention_MO, self._gate_up_MO, self._branch_MD = map(Rows, parts)
        self._threads = 1

    def project_qkv(self, layer: int) -> None:
        """Write queries, keys and values of a layer to ``space.qkv_MO``."""
        products, threads = self.weights.layers[layer], self._threads
        products.qkv.into(self._x_MD, self._qkv_MO, threads)
        for norm in products.head_norms:
            norm.apply(self._qkv_MO, threads)
        if products.query_scale != 1.0:
            self.space.query_MO.mul_(products.query_scale)

    def finish_layer(self, layer: int) -> None:
        """Add output projection and feed-forward block of a layer to ``space.x_MD``."""
        products, threads = self.weights.layers[layer], self._threads
        if products.parallel:  # the MLP reads the hidden states before attention's output is added
            products.mlp.gate_up.into(self._x_MD, self._gate_up_MO, threads)
        self._add(products.out, self._attention_MO, products.after_attention, products.residual_scale)
        if products.mixture is not None:
            products.mixture.into(self._x_MD, self._branch_MD.tensor, threads)
            self._add_branch(products.after_mlp, products.residual_scale)
            return
        if not products.parallel:
            products.mlp.gate_up.into(self._x_MD, self._gate_up_MO, threads)
        self._add(products.mlp.down, self._gate_up_MO, products.after_mlp, products.residual_scale)

    def _add(self, product: NativeProduct, x_MI: Rows, norm: NativeNorm | None, scale: float) -> None:
        """Add a product to the hidden states, normalized and scaled if the family says so."""
        if norm is None and scale == 1.0:
            product.into(x_MI, self._x_MD, self._threads, add=True)
            return
        product.into(x_MI, self._branch_MD, self._threads)
        self._add_branch(norm, scale)

    def _add_branch(self, norm: NativeNorm | None, scale: float) -> None:
        if norm is not None:
            norm.apply(self._branch_MD, self._threads)
        self._x_MD.tensor.add_(self._branch_MD.tensor, alpha=scale)

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
