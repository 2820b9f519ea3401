"""The layers of a model by PyTorch, in fewer and larger operations than `llama.py` and into memory that is kept.

Queries, keys and values are one product, gate and up another; residuals are added by the product before them.

Shapes: ``M`` rows, ``D`` hidden_size, ``I`` in_features, ``O`` out_features, ``F`` intermediate_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpe_llama.model.backends.adjacent import adjacent
from bpe_llama.model.backends.cpu.dispatch import WEIGHTS_FIRST_ROWS
from bpe_llama.model.backends.cpu.workspace import Workspace
from bpe_llama.model.backends.layer_parts import GATES, LayerParts, Mixture
from bpe_llama.model.backends.norms import Norm


def weight_parts(linears: Sequence[nn.Linear]) -> list[list[Tensor]]:
    """Return the matrices, and the biases if there are any."""
    matrices: list[Tensor] = [linear.weight for linear in linears]
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return [matrices, biases] if biases else [matrices]


class Product:
    """The product with the adjacent matrices of linear layers that share their input."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        # Shared, not copied: a bias may be trained.
        parts = [adjacent(tensors) for tensors in weight_parts(linears)]
        weight_OI = parts[0]
        if weight_OI is None or parts[-1] is None:
            raise ValueError("the matrices, or their biases, are not adjacent in memory")
        self.weight_IO = weight_OI.t()
        self.bias = parts[1] if len(parts) > 1 else None

    def into(self, x_MI: Tensor, out_MO: Tensor) -> None:
        """Write the product to ``out_MO``."""
        if self._transposing_pays(x_MI):
            out_MO.copy_(self._transposed(x_MI))
        else:
            torch.mm(x_MI, self.weight_IO, out=out_MO)
        if self.bias is not None:
            out_MO.add_(self.bias)

    def computed(self, x_MI: Tensor, out_MO: Tensor) -> Tensor:
        """Return the product, in ``out_MO`` or, where copying it there would take longer, in memory of its own."""
        if not self._weights_first(x_MI):
            self.into(x_MI, out_MO)
            return out_MO
        found_MO = self._transposed(x_MI)
        return found_MO if self.bias is None else found_MO.add_(self.bias)

    def onto(self, x_MI: Tensor, sum_MO: Tensor) -> None:
        """Add the product to ``sum_MO``."""
        if self._transposing_pays(x_MI):
            sum_MO.add_(self._transposed(x_MI).contiguous())  # a contiguous copy is faster than a strided sum
        else:
            sum_MO.addmm_(x_MI, self.weight_IO)
        if self.bias is not None:
            sum_MO.add_(self.bias)

    def _weights_first(self, x_MI: Tensor) -> bool:
        """Return whether the weights should be the first operand: oneDNN packs the second one anew in each call."""
        return x_MI.dtype == torch.bfloat16 and len(x_MI) > 1

    def _transposing_pays(self, x_MI: Tensor) -> bool:
        """Return whether that holds although the product must be transposed; transposed activations want it."""
        return self._weights_first(x_MI) and (len(x_MI) <= WEIGHTS_FIRST_ROWS or not x_MI.is_contiguous())

    def _transposed(self, x_MI: Tensor) -> Tensor:
        return torch.mm(self.weight_IO.t(), x_MI.t()).t()


class QuantizedProduct:
    """The same for quantized weights, layer by layer through their own kernels."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        self.linears = linears
        self.widths = [linear.out_features for linear in linears]

    def into(self, x_MI: Tensor, out_MO: Tensor) -> None:
        """Write the products to ``out_MO``, side by side."""
        for linear, part_MO in zip(self.linears, torch.split(out_MO, self.widths, dim=1), strict=True):
            part_MO.copy_(linear(x_MI))

    def computed(self, x_MI: Tensor, out_MO: Tensor) -> Tensor:
        """Return the products, in ``out_MO``."""
        self.into(x_MI, out_MO)
        return out_MO

    def onto(self, x_MI: Tensor, sum_MO: Tensor) -> None:
        """Add the product of the only layer to ``sum_MO``."""
        sum_MO.add_(self.linears[0](x_MI))


def _product(*linears: nn.Linear) -> Product | QuantizedProduct:
    """Return the product with layers that share their input, by the format of their weights."""
    plain = all(type(linear) is nn.Linear for linear in linears)
    return Product(linears) if plain else QuantizedProduct(linears)


class _Layer:
    """What a layer computes, and its products."""

    def __init__(self, layer: LayerParts) -> None:
        self.parts = layer
        self.qkv, self.out = _product(*layer.qkv), _product(layer.out)
        if not isinstance(layer.mlp, Mixture):
            self.gate_up, self.down = _product(*layer.mlp.gate_up), _product(layer.mlp.down)


class TorchWeights:
    """The products and norms of a model's layers and of its head."""

    def __init__(self, layers: Sequence[LayerParts], head: nn.Linear, norm: Norm) -> None:
        self.layers = [_Layer(layer) for layer in layers]
        self.norm, self.head = norm, _product(head)

    def write_logits(self, x_MD: Tensor, logits_MV: Tensor) -> None:
        """Write the logits of hidden states, both in the model's dtype."""
        self.head.into(normalized(x_MD, self.norm), logits_MV)


class TorchLayers:
    """A `LayerBackend` of PyTorch operations.

    Args:
        weights: Of the model.
        space: In the model's dtype.
    """

    native = False

    def __init__(self, weights: TorchWeights, space: Workspace) -> None:
        self.weights, self.space = weights, space

    def project_qkv(self, layer: int) -> None:
        """Write queries, keys and values of a layer to ``space.qkv_MO``."""
        products, space = self.weights.layers[layer], self.space
        products.qkv.into(input_of(space, products.parts.before_attention), space.qkv_MO)
        for columns, norm in products.parts.head_norms:
            heads = space.qkv_MO[:, columns].view(len(space.qkv_MO), -1, len(norm.weight))
            heads.copy_(normalized(heads, norm))
        if products.parts.query_scale != 1.0:
            space.query_MO.mul_(products.parts.query_scale)

    def finish_layer(self, layer: int) -> None:
        """Add output projection and feed-forward block of a layer to ``space.x_MD``."""
        products, space = self.weights.layers[layer], self.space
        parts = products.parts
        if parts.parallel:  # the MLP reads the hidden states before attention's output is added
            hidden_MF = self._hidden(products)
            self._add(products.out, space.attention_MO, parts.after_attention, parts.residual_scale)
        else:
            self._add(products.out, space.attention_MO, parts.after_attention, parts.residual_scale)
            hidden_MF = self._hidden(products)
        if isinstance(parts.mlp, Mixture):
            self._add_branch(hidden_MF, parts.after_mlp, parts.residual_scale)
        else:
            self._add(products.down, hidden_MF, parts.after_mlp, parts.residual_scale)

    def _hidden(self, products: _Layer) -> Tensor:
        """Return the input of the down projection, (M, F), or the output of a mixture of experts, (M, D)."""
        mlp, normed_MD = products.parts.mlp, input_of(self.space, products.parts.before_mlp)
        if isinstance(mlp, Mixture):
            output: Tensor = mlp.module(normed_MD[None])
            return output[0]
        gate_MF, up_MF = products.gate_up.computed(normed_MD, self.space.gate_up_MO).chunk(2, dim=1)
        if mlp.gate == "silu":
            functional.silu(gate_MF, inplace=True)
        else:
            gate_MF = GATES[mlp.gate](gate_MF)
        return gate_MF.mul_(up_MF)

    def _add(self, product: Product | QuantizedProduct, x_MI: Tensor, norm: Norm | None, scale: float) -> None:
        """Add a product to the hidden states, normalized and scaled if the family says so."""
        if norm is None and scale == 1.0:
            product.onto(x_MI, self.space.x_MD)
            return
        product.into(x_MI, self.space.normed_MD)
        self._add_branch(self.space.normed_MD, norm, scale)

    def _add_branch(self, branch_MD: Tensor, norm: Norm | None, scale: float) -> None:
        branch_MD = branch_MD if norm is None else normalized(branch_MD, norm)
        self.space.x_MD.add_(branch_MD, alpha=scale)

    def threads(self, keys: int) -> AbstractContextManager[None]:
        """Return a context in which PyTorch has all its threads, for any number of keys."""
        return nullcontext()


def normalized(x: Tensor, norm: Norm) -> Tensor:
    """Return the norm over the last dimension, rounded where the norm's module rounds."""
    if norm.is_layer_norm:
        factors, biases = norm.weight.unbind(-1)
        return functional.layer_norm(x.float(), factors.shape, eps=norm.eps).mul_(factors).add_(biases).to(x.dtype)
    wide = functional.rms_norm(x.float(), norm.weight.shape, eps=norm.eps)
    if norm.weight.dtype == x.dtype:
        return wide.to(x.dtype).mul_(norm.weight)
    return wide.mul_(norm.weight).to(x.dtype)


def input_of(space: Workspace, norm: Norm | None) -> Tensor:
    """Return the hidden states, or normalized in ``space.normed_MD``, rounded where the norm's module rounds."""
    if norm is None:
        return space.x_MD
    if norm.is_layer_norm:
        return space.normed_MD.copy_(normalized(space.x_MD, norm))
    scale_M1, size = space.scale_M1, space.x_MD.shape[1]
    # Converted once: each operation on mixed dtypes would convert for itself.
    float_MD = space.x_MD if space.float_MD is None else space.float_MD.copy_(space.x_MD)
    torch.linalg.vector_norm(float_MD, dim=1, keepdim=True, out=scale_M1)
    # eps + squares / D in one operation: its overhead exceeds the arithmetic.
    torch.addcmul(space.eps, scale_M1, scale_M1, value=1 / size, out=scale_M1).rsqrt_()
    if space.float_MD is None:
        torch.mul(float_MD, scale_M1, out=space.normed_MD)
    elif norm.weight.dtype == torch.float32:
        return space.normed_MD.copy_(float_MD.mul_(scale_M1).mul_(norm.weight))
    else:
        space.normed_MD.copy_(float_MD.mul_(scale_M1))
    return space.normed_MD.mul_(norm.weight)
