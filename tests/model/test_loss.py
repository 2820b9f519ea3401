"""The loss of a chunk of positions at a time, and the float32 products of training, against their definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bpe_llama.model import LlamaForCausalLM
from bpe_llama.model.layers.loss import chunked_next_token_loss
from bpe_llama.model.layers.loss import linear_cross_entropy as chunked
from bpe_llama.model.layers.loss.linear_cross_entropy import linear_cross_entropy
from bpe_llama.model.layers.matmul import products

Make = Callable[..., LlamaForCausalLM]
close = torch.testing.assert_close


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    with torch.enable_grad():
        yield


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute the products of training by oneDNN, whatever the processor."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


def drawn(seed: int, positions: int, width: int, vocab_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(positions, width, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab_size, width, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(0, vocab_size, (positions,), generator=generator)
    labels[torch.rand(positions, generator=generator) < 0.3] = -100
    labels[0] = vocab_size - 1  # at least one is learned
    return hidden, weight, labels


def by_definition(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, z_loss: float) -> Tensor:
    logits = hidden @ weight.T
    learned = labels != -100
    squares = logits[learned].exp().sum(-1).log().square()
    return functional.cross_entropy(logits, labels, label_smoothing=smoothing) + z_loss * squares.mean()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    positions=st.integers(1, 40),
    width=st.integers(1, 20),
    vocab_size=st.integers(1, 700),
    chunk=st.none() | st.integers(1, 50),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    z_loss=st.sampled_from([0.0, 1e-4, 0.1]),
    block=st.sampled_from([1 << 22, 300, 2000]),
)
def test_the_chunked_loss_and_its_gradient_are_those_of_the_definition(
    seed: int,
    positions: int,
    width: int,
    vocab_size: int,
    chunk: int | None,
    smoothing: float,
    z_loss: float,
    block: int,
) -> None:
    hidden, weight, labels = drawn(seed, positions, width, vocab_size, torch.float64)
    expected = by_definition(hidden, weight, labels, smoothing, z_loss)
    with pytest.MonkeyPatch.context() as patch, torch.enable_grad():
        patch.setattr(chunked, "BLOCK", block)
        options: dict[str, Any] = {"chunk_size": chunk, "label_smoothing": smoothing, "z_loss": z_loss}
        found = linear_cross_entropy(hidden, weight, labels, **options)
        close(found, expected)
        close(
            torch.autograd.grad(3 * found, (hidden, weight)),
            torch.autograd.grad(3 * expected, (hidden, weight)),
        )
        in_float32 = [hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()]
        rounded = linear_cross_entropy(*in_float32, labels, **options)
    close(rounded, expected.float(), rtol=1e-4, atol=1e-4)
    for found_gradient, exact in zip(
        torch.autograd.grad(rounded, in_float32),
        torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, **options), (hidden, weight)),
        strict=True,
    ):
        close(found_gradient, exact.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.05), (0.2, 0.05)])
def test_the_gradient_is_the_slope_of_the_loss(smoothing: float, z_loss: float) -> None:
    hidden, weight, labels = drawn(3, 7, 4, 11, torch.float64)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, chunk_size=3, label_smoothing=smoothing, z_loss=z_loss)

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_logits_far_apart_neither_overflow_nor_vanish() -> None:
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight, labels = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True), torch.tensor([2, 1])
    loss = linear_cross_entropy(hidden, weight, labels)
    assert loss.item() == 1500
    loss.backward()
    assert hidden.grad.tolist() == [[1.0], [-0.5]]


def test_a_gradient_is_asked_for_as_of_any_other_function() -> None:
    hidden, weight, labels = drawn(0, 9, 4, 12, torch.float32)
    loss = linear_cross_entropy(hidden, weight, labels)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    loss.backward(retain_graph=True)
    weight.grad.add_(1)  # the caller's own: later gradients do not see it
    close(torch.autograd.grad(loss, (hidden, weight)), first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    for part in (hidden, weight):
        alone = [tensor if tensor is part else tensor.detach() for tensor in (hidden, weight)]
        close(torch.autograd.grad(linear_cross_entropy(*alone, labels), part)[0], first[part is weight])
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, labels).item() == loss.item()


def test_the_gradient_of_the_head_is_handed_over_without_a_copy() -> None:
    hidden, weight, labels = drawn(0, 9, 4, 12, torch.float32)
    loss = linear_cross_entropy(hidden, weight, labels)
    kept = loss.grad_fn.saved_tensors[1].data_ptr()
    loss.backward()
    assert weight.grad.data_ptr() == kept


def test_no_label_is_as_the_mean_of_nothing() -> None:
    hidden, weight, labels = drawn(0, 4, 3, 5, torch.float32)
    labels[:] = -100
    assert linear_cross_entropy(hidden, weight, labels).isnan()
    loss = linear_cross_entropy(hidden[:0], weight, labels[:0], divisor=3)
    loss.backward()
    assert loss.item() == 0 and not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_rounds_as_the_layers_do(dtype: torch.dtype) -> None:
    hidden, weight, labels = drawn(1, 60, 32, 100, torch.float32)
    hidden, weight = (tensor.detach().to(dtype).requires_grad_() for tensor in (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, labels, chunk_size=16)
        expected = functional.cross_entropy(functional.linear(hidden, weight).float(), labels)
    close(found, expected, rtol=1e-5, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(found, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert ours.dtype == dtype
        close(ours, theirs, rtol=0.05, atol=2e-4)


class Largest(TorchDispatchMode):
    """Records the largest tensor that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_the_logits_of_all_positions_are_never_in_memory() -> None:
    hidden, weight, labels = torch.randn(700, 8, requires_grad=True), torch.randn(50_000, 8), torch.zeros(700).long()
    with Largest() as seen:
        linear_cross_entropy(hidden, weight.requires_grad_(), labels).backward()
    assert seen.numbers == 256 * 50_000


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_head_that_is_more_than_a_product_has_the_same_loss(smoothing: float) -> None:
    hidden, weight, _ = drawn(2, 24, 6, 30, torch.float32)
    labels = torch.randint(0, 30, (2, 12))
    labels[1, 4:] = -100
    head = nn.Linear(6, 30, bias=False)
    head.weight = nn.Parameter(weight.detach())
    options: dict[str, Any] = {"label_smoothing": smoothing, "z_loss": 0.01, "chunk_size": 5}

    def loss_and_gradients(head: nn.Module) -> tuple[Tensor, ...]:
        loss = chunked_next_token_loss(hidden.view(2, 12, 6), head, labels, **options)
        return loss, *torch.autograd.grad(loss, (hidden, *head.parameters()))

    plain = loss_and_gradients(head)
    rows: list[int] = []
    head.register_forward_hook(lambda head, given, logits: rows.append(len(logits)))
    close(loss_and_gradients(head), plain)
    assert max(rows) == 5 and sum(rows) == 2 * (11 + 3)  # forward and backward, learned positions alone
    close(loss_and_gradients(nn.Sequential(head)), plain)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_products_of_training_are_those_of_torch(tiny_model: Make, ids: Tensor, checkpointing: bool) -> None:
    model = tiny_model(attention_bias=True).train()
    expected = model(ids, labels=ids).loss
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    model.model.gradient_checkpointing = checkpointing
    loss = model.loss(ids, ids)
    loss.backward()
    close(loss, expected)
    for name, weight in model.named_parameters():
        close(weight.grad, gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("onednn")
def test_products_without_a_gradient_or_in_another_dtype_are_torch_s_own() -> None:
    layer, x = nn.Linear(33, 17, bias=False), torch.randn(5, 3, 33)
    with products.training_products():
        assert "_Linear" in layer(x).grad_fn.next_functions[0][0].name()
        assert "_Linear" not in layer.double()(x.double()).grad_fn.next_functions[0][0].name()
        close(layer.float()(x[0, 0]), layer(x)[0, 0])  # one vector
        with torch.no_grad():
            inside = layer(x)
    with torch.no_grad():
        assert torch.equal(inside, layer(x))
    with torch.autocast("cpu", torch.bfloat16), products.training_products():
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.usefixtures("onednn")
def test_a_product_takes_any_strides() -> None:
    x, weight = torch.randn(7, 50), torch.randn(50, 30)
    close(products.product(x, weight.T), x @ weight)
    close(products.product(x[:, ::2], weight[::2].T), x[:, ::2] @ weight[::2])
    close(products.product(x[:, :9], weight[:9, 3:8].T), x[:, :9] @ weight[:9, 3:8])
    assert products.product(x[:0], weight.T).shape == (0, 30)


class Products(TorchDispatchMode):
    """Records the dtypes of matrix products and of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("mm", "_linear_pointwise", "attention")):
            self.dtypes |= {part.dtype for part in args if isinstance(part, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("tier", "fast", "slower"),
    [
        ("portable", False, True),
        ("avx512", False, True),
        ("avx512_bf16", False, True),  # Intel's
        ("avx512_bf16", True, False),
        ("amx", False, False),
        ("neon", False, False),
    ],
)
def test_bfloat16_is_slower_without_fast_instructions(
    monkeypatch: pytest.MonkeyPatch, tier: str, fast: bool, slower: bool
) -> None:
    monkeypatch.setattr(products, "simd_tier", lambda: tier)
    monkeypatch.setattr(products, "has_avx512_bf16", lambda: fast)
    assert products.bfloat16_is_slower.__wrapped__() == slower


@pytest.mark.parametrize("library", ["onednn", "mkl"])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_slower_bfloat16_is_computed_in_float32(
    tiny_model: Make, ids: Tensor, monkeypatch: pytest.MonkeyPatch, library: str, softcap: float | None
) -> None:
    if library == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: library == "onednn")
    model = tiny_model(attention_bias=True).train()
    for layer in model.model.layers:
        backend = layer.self_attn.backend
        layer.self_attn.backend = lambda *heads, backend=backend: backend(*heads, softcap)

    def step(slower: bool) -> tuple[Tensor, list[Tensor], set[torch.dtype]]:
        monkeypatch.setattr(products, "bfloat16_is_slower", lambda: slower)
        with Products() as seen:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model.loss(ids, ids)
            return loss, list(torch.autograd.grad(loss, list(model.parameters()))), seen.dtypes

    loss, gradients, dtypes = step(slower=True)
    expected, in_bfloat16, _ = step(slower=False)
    assert dtypes == {torch.float32}
    close(loss, expected, rtol=1e-3, atol=1e-3)
    for gradient, other in zip(gradients, in_bfloat16, strict=True):
        assert (gradient - other).norm() < 0.05 * other.norm() + 1e-4


def test_a_tied_embedding_adds_its_gradient_into_that_of_the_head(tiny_model: Make, ids: Tensor) -> None:
    model = tiny_model(tie_word_embeddings=True).train()
    model(ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad is not None
    wanted = model.lm_head.weight.grad.clone()
    model.zero_grad()
    loss = model.loss(ids, ids)
    place = next(saved.data_ptr() for saved in loss.grad_fn.saved_tensors if saved.shape == wanted.shape)
    loss.backward()
    assert model.lm_head.weight.grad.data_ptr() == place  # no third matrix is made for the sum
    close(model.lm_head.weight.grad, wanted)
