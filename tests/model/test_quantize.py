"""Quantized weights: their error, and the agreement of all kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from bpe_llama.model import LlamaForCausalLM, lora, quantize
from bpe_llama.model.backends.cpu.weight_layout import lay_out_weights
from bpe_llama.model.layers.moe.fused import FusedExperts
from bpe_llama.model.quantization.layers import (
    CUDA_ROWS,
    PACKED_ROWS,
    Float8Linear,
    Int4Linear,
    Int8Linear,
    PackedLinear,
    QuantizedLinear,
    scaled_product,
)

Make = Callable[..., LlamaForCausalLM]
SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}


@torch.no_grad()
def layer(bias: bool = False) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    plain = nn.Linear(128, 48, bias=bias)
    for weight in plain.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator))
    return plain


def test_int8_error_is_half_a_step() -> None:
    plain = layer()
    packed = Int8Linear(plain)
    off = (packed.dequantized() - plain.weight).abs()
    # Half a step by rounding, and the scale itself is rounded to 8 bits: 127 codes, each off by 2**-9 of a step.
    assert bool((off <= packed.scale[:, None] * (0.5 + 127 * 2**-8)).all())


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_int4_error_is_a_step(group_size: int) -> None:
    plain = layer()
    packed = Int4Linear(plain, group_size)
    scale = packed.scale_and_zero[..., 0].float().repeat_interleave(group_size, 1)
    zero = packed.scale_and_zero[..., 1].float().repeat_interleave(group_size, 1)
    off = (packed.dequantized() - plain.weight).abs()
    assert bool((off <= scale * (0.5 + 8 * 2**-8) + zero.abs() * 2**-8).all())
    assert packed.packed.numel() * 2 == plain.weight.numel()
    assert bool((packed.codes() <= 15).all())


@pytest.mark.parametrize(("kind", "relative"), [(torch.float8_e4m3fn, 2**-4), (torch.float8_e5m2, 2**-3)])
@pytest.mark.parametrize("per_row", [False, True])
def test_float8_error_is_that_of_rounding(kind: torch.dtype, relative: float, per_row: bool) -> None:
    plain = layer()
    packed = Float8Linear(plain, kind, per_row)
    floor = torch.finfo(kind).smallest_normal * packed.scale * relative
    off = (packed.dequantized() - plain.weight).abs()
    assert bool((off <= plain.weight.abs() * relative + floor).all())
    assert packed.scale.numel() == (48 if per_row else 1)


@pytest.mark.parametrize("kind", quantize.KINDS)
@pytest.mark.parametrize("rows", [1, 5, PACKED_ROWS, PACKED_ROWS + 1])
@pytest.mark.parametrize("bias", [False, True])
def test_kernels_equal_the_dequantized_product(kind: str, rows: int, bias: bool) -> None:
    plain = layer(bias)
    packed = quantize.quantize(nn.Sequential(plain), kind)[0]
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    expected = nn.functional.linear(x.float(), packed.dequantized(), plain.bias)
    for given in (x, x.float()):
        out = packed(given)
        assert out.dtype == given.dtype
        # Sums of 128 products of size 1, up to 41; bfloat16 rounds them and the dequantized weight.
        atol, rtol = (1e-3, 1e-5) if given.dtype == torch.float32 else (0.3, 2**-6)
        assert_close(out.float(), expected, atol=atol, rtol=rtol)


@torch.enable_grad()
@pytest.mark.parametrize("kind", quantize.KINDS)
def test_gradients_reach_the_input(kind: str) -> None:
    packed = quantize.quantize(nn.Sequential(layer()), kind)[0]
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1), requires_grad=True)
    packed(x).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, packed.dequantized().sum(0).expand(3, -1))


@pytest.mark.parametrize(
    ("kind", "likeness"), [("int8", 0.998), ("int4", 0.85), ("float8_e4m3", 0.98), ("float8_e5m2", 0.93)]
)
def test_a_quantized_model_trains_generates_and_round_trips(
    tiny_model: Make, ids: Tensor, kind: str, likeness: float, tmp_path: Path
) -> None:
    model = tiny_model(**SHAPE)
    exact = model(ids).logits
    quantize.quantize(model, kind)
    out = model(ids).logits
    assert likeness < torch.corrcoef(torch.stack([out.flatten(), exact.flatten()]))[0, 1] < 1.0
    assert isinstance(model.lm_head, nn.Linear)
    assert model.generate(ids, max_new_tokens=3, eos_id=()).shape == (3, 23)
    assert not any(isinstance(m, QuantizedLinear) for m in quantize.dequantize(model).modules())
    assert_close(model(ids).logits, out, atol=2e-4, rtol=1e-3)
    model.save_pretrained(tmp_path)
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("experts", [None, 2])
def test_dequantized_weights_below_an_adapter_stay_frozen(tiny_model: Make, experts: int | None) -> None:
    """Before, they were trained beside the adapter."""
    model = quantize.quantize(tiny_model(**SHAPE, attention_bias=True, num_local_experts=experts), "int8")
    lora.add(model, target_modules="all-linear", modules_to_save=["lm_head"], bias="all")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    quantize.dequantize(model)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trained
    plain = quantize.dequantize(quantize.quantize(tiny_model(**SHAPE), "int8"))
    assert all(weight.requires_grad for weight in plain.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_unquantized_weights_do_not_keep_the_shared_buffer_in_memory(tiny_model: Make, ids: Tensor, tied: bool) -> None:
    model = tiny_model(**SHAPE, tie_word_embeddings=tied)
    never_laid = quantize.quantize(tiny_model(**SHAPE, tie_word_embeddings=tied), "int8")
    lay_out_weights(model)
    assert model.model.embed_tokens.weight.untyped_storage().nbytes() > 2 * model.model.embed_tokens.weight.nbytes
    quantize.quantize(model, "int8")
    assert all(weight.untyped_storage().nbytes() == weight.nbytes for weight in model.parameters())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert torch.equal(model(ids).logits, never_laid(ids).logits)


def test_refusals(tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model(**SHAPE)
    with pytest.raises(ValueError, match="kind is 'int3'"):
        quantize.quantize(model, "int3")
    with pytest.raises(ValueError, match=r"group_size is 128; expected .*, and a divisor of .*'s 64"):
        quantize.quantize(model, "int4", group_size=128)
    with pytest.raises(ValueError, match="per_row is False, but kind is 'int8'; expected a float8 kind"):
        quantize.quantize(model, "int8", per_row=False)
    for function in (quantize.quantize, quantize.bytes_saved):
        with pytest.raises(ValueError, match="group_size is 32, but kind is 'float8_e4m3'; expected 'int4'"):
            function(model, "float8_e4m3", group_size=32)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    with pytest.raises(ValueError, match="not a plain checkpoint"):
        quantize.quantize(model, "int8").save_pretrained(tmp_path)


FLOAT8 = [(kind, per_row) for kind in (torch.float8_e4m3fn, torch.float8_e5m2) for per_row in (False, True)]


@pytest.mark.parametrize(("kind", "per_row"), FLOAT8)
def test_scaled_product_equals_the_product_of_the_rounded_input(kind: torch.dtype, per_row: bool) -> None:
    packed = Float8Linear(layer(), kind, per_row)
    x = torch.randn(40, 128, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 40)[:, None]
    x[7] = 0
    out = scaled_product(x.to(torch.bfloat16), packed.weight, packed.scale)
    assert out.dtype == torch.bfloat16
    rounded = x.to(torch.bfloat16).float()
    peak = rounded.abs().amax(1, keepdim=True) if per_row else rounded.abs().amax()
    step = peak.clamp(min=1e-12) / 448
    rounded = (rounded / step).to(torch.float8_e4m3fn).float() * step
    expected = rounded @ packed.dequantized().T
    # bfloat16 has eight bits of precision; where a sum cancels, float32's rounding of its addends remains.
    assert bool(((out.float() - expected).abs() <= 2**-8 * expected.abs() + 1e-4 * peak).all())
    assert packed.product(x) is None  # no CPU has float8 instructions: the weight is dequantized


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="float8 products need a CUDA GPU; none is here")
@pytest.mark.parametrize(("kind", "per_row"), FLOAT8)
@pytest.mark.parametrize("rows", [1, 32, 200])
def test_float8_products_on_cuda(kind: torch.dtype, per_row: bool, rows: int) -> None:
    packed = Float8Linear(layer().cuda(), kind, per_row)
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(1)).cuda().to(torch.bfloat16)
    rounded = x.float()
    if torch.cuda.get_device_capability() >= (8, 9):
        assert packed.product(x) is not None
        maximum = rounded.abs().amax(1, keepdim=True) if per_row else rounded.abs().max()
        scale = maximum / torch.finfo(torch.float8_e4m3fn).max
        rounded = (rounded / scale).to(torch.float8_e4m3fn).float() * scale
    expected = rounded @ packed.dequantized().T
    assert_close(packed(x).float(), expected, atol=2**-8 * expected.abs().max().item(), rtol=2**-7)
    assert packed.float().product(x) is None  # the weight is no float8 any more


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton's kernels need a CUDA GPU; none is here")
@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("rows", [1, 32, CUDA_ROWS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_products_on_cuda(kind: type[PackedLinear], rows: int, dtype: torch.dtype) -> None:
    packed = kind(layer(bias=True).cuda())
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(1)).cuda().to(dtype)
    assert packed.product(x) is not None
    assert packed.bias is not None
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    expected = x.float() @ packed.dequantized().T + packed.bias.float()
    assert_close(packed(x).float(), expected, atol=tolerance, rtol=2**-6 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("kind", quantize.KINDS)
@pytest.mark.parametrize("family", [{}, {"num_local_experts": 4, "num_experts_per_tok": 2}])
def test_the_bytes_saved_are_known_before(tiny_model: Make, kind: str, family: dict[str, object]) -> None:
    model = tiny_model(**SHAPE, **family)
    before = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    saved = quantize.bytes_saved(LlamaForCausalLM(model.config, device="meta"), kind)
    quantize.quantize(model, kind)
    assert before - sum(t.nbytes for t in (*model.parameters(), *model.buffers())) == saved


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_the_bytes_saved_of_experts_in_one_tensor(kind: str) -> None:
    model = nn.Sequential(FusedExperts(3, 64, 128))
    for weight in model.parameters():
        nn.init.ones_(weight)
    before, saved = sum(t.nbytes for t in model.parameters()), quantize.bytes_saved(model, kind)
    quantize.quantize(model, kind)
    assert before - sum(t.nbytes for t in model.buffers()) == saved
