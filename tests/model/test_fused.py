"""The fused operations of training on a CPU against the definitions in float64, and against PyTorch's operations."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bpe_llama import _core
from bpe_llama.model import LlamaConfig, LlamaForCausalLM
from bpe_llama.model.layers import fused
from bpe_llama.model.layers.matmul import products
from bpe_llama.model.layers.matmul.products import training_products
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.layers.rope import apply_rope

Make = Callable[..., LlamaForCausalLM]
close = torch.testing.assert_close
needs_fma = pytest.mark.skipif(_core.simd_tier() == "portable", reason="needs a CPU with fused multiply-adds")


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def rope(x_BNTH: Tensor) -> Tensor:
    return apply_rope(x_BNTH, angles(x_BNTH))


def angles(x_BNTH: Tensor) -> tuple[Tensor, Tensor]:
    """Return the angles of two rows of positions, whose heads are rotated in all features but the last two."""
    batch, _, length, width = x_BNTH.shape
    angles = torch.arange(batch * length * (width // 2 - 1), dtype=torch.float32).view(batch, length, -1)
    return angles.cos(), angles.sin()


def heads_last(*shape: int) -> Tensor:
    batch, heads, length, width = shape
    return torch.randn(batch, length, heads, width).transpose(1, 2)


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[[], Sequence[Tensor]]]] = {
    "norm": (lambda x, w: fused.rms_norm(x, w, 1e-5), rms_norm, lambda: (torch.randn(2, 5, 33), torch.randn(33))),
    "norm of heads": (
        lambda x, w: fused.rms_norm(x, w, 1e-5),
        rms_norm,
        lambda: (heads_last(2, 3, 5, 8), torch.randn(8)),
    ),
    "norm of spread rows": (
        lambda x, w: fused.rms_norm(x, w, 1e-5),
        rms_norm,
        lambda: (torch.randn(2, 8, 5).transpose(1, 2), torch.randn(8)),
    ),
    "norm of nothing": (lambda x, w: fused.rms_norm(x, w, 1e-5), rms_norm, lambda: (torch.randn(0, 8), torch.randn(8))),
    "swiglu": (fused.swiglu, swiglu, lambda: (torch.randn(2, 5, 33) * 30, torch.randn(2, 5, 33))),
    "swiglu, spread": (fused.swiglu, swiglu, lambda: (torch.randn(33, 5).T, torch.randn(33, 5).T)),
    "rope": (lambda x: fused.rotate(x, *angles(x)), rope, lambda: (heads_last(2, 3, 5, 8),)),
    "rope, heads first": (lambda x: fused.rotate(x, *angles(x)), rope, lambda: (torch.randn(2, 3, 5, 8),)),
    "rope, one row of angles": (
        lambda x: fused.rotate(x, *angles(x[:1])),
        lambda x: apply_rope(x, angles(x[:1])),
        lambda: (heads_last(2, 3, 5, 8),),
    ),
}


def gradients(out: Tensor, inputs: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, inputs, gradient, create_graph=True)


@pytest.mark.parametrize("name", CASES)
@torch.enable_grad()
def test_values_and_gradients_are_those_of_the_definition(name: str) -> None:
    torch.manual_seed(0)
    function, definition, draw = CASES[name]
    inputs = [part.detach().requires_grad_() for part in draw()]
    exact = [part.detach().double().requires_grad_() for part in inputs]
    out, expected = function(*inputs), definition(*exact)
    close(out, expected.float(), rtol=1e-5, atol=1e-5)
    for gradient in (torch.randn(out.shape), torch.ones(()).expand(out.shape)):
        found = torch.autograd.grad(out, inputs, gradient, retain_graph=True)
        wanted = torch.autograd.grad(expected, exact, gradient.double(), retain_graph=True)
        for first, second in zip(found, wanted, strict=True):
            close(first, second.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in CASES if "nothing" not in name])
@torch.enable_grad()
def test_second_derivatives(name: str) -> None:
    torch.manual_seed(0)
    function, definition, draw = CASES[name]
    inputs = [part.detach().requires_grad_() for part in draw()]
    exact = [part.detach().double().requires_grad_() for part in inputs]
    gradient = torch.randn(inputs[0].shape).requires_grad_()
    gradient64 = gradient.detach().double().requires_grad_()
    penalty = sum(part.square().sum() for part in gradients(function(*inputs), inputs, gradient))
    expected = sum(part.square().sum() for part in gradients(definition(*exact), exact, gradient64))
    found = torch.autograd.grad(penalty, [*inputs, gradient], allow_unused=True, materialize_grads=True)
    wanted = torch.autograd.grad(expected, [*exact, gradient64], allow_unused=True, materialize_grads=True)
    for first, second in zip(found, wanted, strict=True):
        close(first, second.float(), rtol=1e-3, atol=1e-3)


@torch.enable_grad()
def test_inputs_that_depend_on_each_other_are_differentiated_once() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)

    def found(norm: Callable[..., Tensor], gated: Callable[..., Tensor], create_graph: bool) -> tuple[Tensor, ...]:
        twice = norm(norm(x, weight), weight)
        return torch.autograd.grad(gated(twice, twice).sum(), (x, weight), create_graph=create_graph)

    for create_graph in (False, True):
        mine = found(lambda x, w: fused.rms_norm(x, w, 1e-5), fused.swiglu, create_graph)
        for first, second in zip(mine, found(rms_norm, swiglu, create_graph), strict=True):
            close(first, second, rtol=1e-4, atol=1e-4)


@torch.enable_grad()
@pytest.mark.parametrize("name", CASES)
def test_hooks_may_return_saved_tensors_with_other_strides(name: str) -> None:
    function, _, draw = CASES[name]
    inputs = [part.detach().requires_grad_() for part in draw()]
    wanted = torch.autograd.grad(function(*inputs).square().sum(), inputs)

    def strided(saved: Tensor) -> Tensor:
        return saved.mT.contiguous().mT if saved.ndim > 1 else saved

    for unpack in (torch.Tensor.contiguous, strided):
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, unpack):
            out = function(*inputs)
        for first, second in zip(torch.autograd.grad(out.square().sum(), inputs), wanted, strict=True):
            close(first, second)


@torch.enable_grad()
def test_rotated_heads_can_be_changed_in_place() -> None:
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    fused.rotate(x, *angles(x)).mul_(2).sum().backward()
    (expected,) = torch.autograd.grad(2 * rope(x).sum(), x)
    close(x.grad, expected)


@torch.enable_grad()
def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.ones(8)
    (for_x,) = torch.autograd.grad(fused.rms_norm(x, weight, 1e-5).sum(), x, create_graph=True)
    assert for_x.requires_grad
    fused.rms_norm(x, weight, 1e-5).sum().backward()
    assert weight.grad is None
    close(x.grad, for_x.detach(), rtol=1e-4, atol=1e-5)


@torch.enable_grad()
def test_threads_do_not_change_the_bits() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3000, 192, requires_grad=True), torch.randn(192, requires_grad=True)
    labels, scale = torch.randint(0, 192, (3000,)), torch.rand(3000)

    def results() -> list[Tensor]:
        out = fused.swiglu(fused.rms_norm(x, weight, 1e-5), x)
        logits = x.detach().clone()
        loss = fused.cross_entropy(logits, labels, scale, 0.1, 1e-4, gradient=True)
        return [out, logits, loss, *torch.autograd.grad(out.sum(), (x, weight))]

    alone = results()
    torch.set_num_threads(3)
    assert all(torch.equal(one, three) for one, three in zip(alone, results(), strict=True))


THREADS = """
import multiprocessing, os, sys, time
import numpy as np
from bpe_llama import _core

if "torch" in sys.argv:
    import torch
    torch.set_num_threads(2)

def norm(threads):
    rows = np.ones((3000, 192), np.float32)
    out, scales = np.zeros_like(rows), np.zeros(3000, np.float32)
    _core.rms_norm(rows, np.ones(192, np.float32), 0.0, out, scales, threads)
    return bool((out == 1).all())

def started(threads):
    before = set(os.listdir("/proc/self/task"))
    assert norm(threads)
    time.sleep(0.3)  # a thread gives itself its name
    new = set(os.listdir("/proc/self/task")) - before
    return [open(f"/proc/self/task/{thread}/comm").read().strip() == "bpe-llama" for thread in new]

if "used" in sys.argv:
    torch.ones(10**6).sum()  # starts PyTorch's threads; the first call of ours is the child's
else:
    print(started(1), started(2), started(3))
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.apply_async(norm, (2,)).get(timeout=60))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads of PyTorch are used on Linux only")
@pytest.mark.parametrize(
    ("loaded", "expected"),
    [("torch", ["[] [False] [True, True]"]), ("numpy", ["[] [True] [True]"]), ("torch used", [])],
)
def test_as_many_threads_as_pytorch_has_are_its_own(loaded: str, expected: list[str]) -> None:
    command = [sys.executable, "-W", "ignore", "-c", THREADS, *loaded.split()]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert found.stdout.split("\n") == [*expected, "True", ""]


MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "part of a head is rotated": {
        "model_type": "bpe_llama",
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
    },
    "norms of heads": {"model_type": "qwen3"},
    "experts": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
}


@needs_fma
@pytest.mark.parametrize("checkpointing", [0, 1])
@pytest.mark.parametrize("name", MODELS)
@torch.enable_grad()
def test_a_step_is_that_of_pytorch(
    tiny_model: Make, ids: Tensor, monkeypatch: pytest.MonkeyPatch, name: str, checkpointing: int
) -> None:
    config = LlamaConfig.from_dict(tiny_model().config.to_dict() | MODELS[name])
    model = LlamaForCausalLM(config, seed=0).train()
    model.model.gradient_checkpointing = checkpointing
    documents = torch.tensor([[0] * 7 + [1] * 13]).expand(3, -1)

    def step() -> list[Tensor]:
        loss = model.loss(ids, ids, document_ids=documents)
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    calls: list[str] = []
    for function in ("rms_norm", "swiglu", "rotate"):
        original = getattr(fused, function)
        monkeypatch.setattr(fused, function, lambda *a, f=function, o=original: (calls.append(f), o(*a))[1])
    found = step()
    assert set(calls) == {"rms_norm", "rotate"} | (set() if name == "experts" else {"swiglu"})
    assert calls.count("rotate") == (2 if checkpointing else 1) * 2 * model.config.num_hidden_layers
    monkeypatch.setattr(fused, "is_used", lambda *parts: False)
    for first, second in zip(found, step(), strict=True):
        close(first, second, rtol=1e-3, atol=2e-5)


@needs_fma
@torch.enable_grad()
def test_recomputed_layers_have_as_many_backward_passes_as_wanted(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model().train()
    model.model.gradient_checkpointing = 1
    loss, parameters = model.loss(ids, ids), list(model.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, parameters), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("onednn", [False, True])
@torch.enable_grad()
def test_a_checkpoint_of_the_caller_computes_the_same_again(
    tiny_model: Make, ids: Tensor, monkeypatch: pytest.MonkeyPatch, onednn: bool
) -> None:
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: onednn)
    model = tiny_model().train()
    wanted = torch.autograd.grad(model.loss(ids, ids), list(model.parameters()))
    for layer in model.model.layers:
        forward = layer.forward
        layer.forward = lambda *a, forward=forward: checkpoint(forward, *a, use_reentrant=False)
    found = torch.autograd.grad(model.loss(ids, ids), list(model.parameters()))
    for first, second in zip(found, wanted, strict=True):
        close(first, second, rtol=1e-3, atol=2e-5)


def test_without_a_gradient_the_mlp_frees_what_it_has_multiplied(tiny_model: Make) -> None:
    mlp = tiny_model().model.layers[0].mlp
    factors: list[weakref.ref[Tensor]] = []
    alive: list[Tensor | None] = []
    for part in mlp.input_linears:
        part.register_forward_hook(lambda module, args, out: factors.append(weakref.ref(out)))
    mlp.down_proj.register_forward_pre_hook(lambda module, args: alive.extend(factor() for factor in factors))
    with torch.no_grad():
        mlp(torch.randn(1, 2, mlp.gate_proj.in_features))
    assert alive == [None, None]


@torch.enable_grad()
def test_only_training_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    x, norm = torch.randn(2, 8, requires_grad=True), RMSNorm(8, 1e-5)
    assert not fused.is_used(x)
    with training_products():
        assert fused.is_used(x, norm.weight)
        assert not fused.is_used(x.detach())
        assert not fused.is_used(x.double())
        assert not fused.is_used(x, torch.empty(8, device="meta"))
        with torch.no_grad():
            assert not fused.is_used(x)
        monkeypatch.setattr(_core, "simd_tier", lambda: "portable")
        assert not fused.is_used(x)
        monkeypatch.undo()
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not fused.is_used(x)
    monkeypatch.undo()
    assert not fused.is_used(x)


def test_a_label_that_is_no_class_is_named() -> None:
    with pytest.raises(ValueError, match="label 8 is not one of 8 classes"):
        fused.cross_entropy(torch.zeros(2, 8), torch.tensor([0, 8]), torch.ones(2), 0.0, 0.0, gradient=False)
