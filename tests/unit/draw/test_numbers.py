"""Formats of numbers: bits and values are those of torch; the picture shows them."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from bpe_llama.draw import draw_number_format
from bpe_llama.draw.numbers import FLOATS

DTYPES = {
    "float32": (torch.float32, torch.int32),
    "float16": (torch.float16, torch.int16),
    "bfloat16": (torch.bfloat16, torch.int16),
    "float8_e4m3": (torch.float8_e4m3fn, torch.int8),
    "float8_e5m2": (torch.float8_e5m2, torch.int8),
}


def values() -> torch.Tensor:
    """Return numbers of all magnitudes, float32, halfway cases, both ends of each range and zeros among them."""
    powers = torch.arange(-149.0, 128.0)
    found = torch.cat([2.0**powers * factor for factor in (1.0, 1.0625, 1.125, 1.3, 1.5, 1.75, 1.9375, 1.999)])
    edges = torch.tensor([0.0, 240.0, 448.0, 57344.0, 65504.0, 65519.0, 65520.0, math.inf])
    found = torch.cat([found, edges])
    return torch.cat([found, -found])


@pytest.mark.parametrize("name", DTYPES)
def test_a_number_has_the_bits_that_torch_gives_it(name: str) -> None:
    kind, (dtype, integers) = FLOATS[name], DTYPES[name]
    numbers = values()
    if not kind.has_infinity:  # older versions of torch make NaN of numbers beyond the range
        numbers = numbers[numbers.abs() <= torch.finfo(dtype).max]
    wanted = (numbers.to(dtype).view(integers).to(torch.int64) % 2**kind.bits).tolist()
    assert [kind.encode(value) for value in numbers.tolist()] == wanted


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3", "float8_e5m2"])
def test_every_pattern_stands_for_the_number_of_torch(name: str) -> None:
    kind, (dtype, integers) = FLOATS[name], DTYPES[name]
    patterns = torch.arange(2**kind.bits)
    wanted = patterns.to(integers).view(dtype).to(torch.float64)
    found = torch.tensor([kind.decode(pattern) for pattern in patterns.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [0.1, -math.pi, 5e-324, 2.0**-1022, 1.7976931348623157e308, -0.0, math.inf])
def test_float64_keeps_every_number(value: float) -> None:
    pattern = FLOATS["float64"].encode(value)
    assert pattern == int.from_bytes(struct.pack(">d", value), "big")
    assert math.copysign(1.0, value) == math.copysign(1.0, FLOATS["float64"].decode(pattern))
    assert FLOATS["float64"].decode(pattern) == value


def test_a_format_without_infinity_ends_at_its_largest_number() -> None:
    kind = FLOATS["float8_e4m3"]
    assert [kind.decode(kind.encode(value)) for value in (464.0, -1e9, math.inf)] == [448.0, -448.0, 448.0]


def test_nan_stays_nan() -> None:
    for kind in FLOATS.values():
        assert math.isnan(kind.decode(kind.encode(math.nan)))


def texts_of(value: float, *formats: str, largest: float | None = None) -> list[str]:
    (axes,) = draw_number_format(value, formats, largest=largest).axes
    return [text.get_text() for text in axes.texts]


def test_the_picture_has_a_box_for_each_bit_and_the_stored_value() -> None:
    texts = texts_of(-0.1, "float8_e4m3")
    assert texts[:2] == ["float8_e4m3", "bits: 1 sign, 4 exponent, 3 fraction"]
    assert "".join(texts[2:10]) == "10011101"
    assert texts[10:] == ["-1.625 × $2^{-4}$ = -0.1015625"]


def test_integers_are_multiples_of_a_scale() -> None:
    texts = texts_of(-0.1, "int8", "int4", largest=0.3)
    assert "".join(texts[2:10]) == f"{256 - 42:b}"
    assert texts[10] == "-42 × 0.3 / 127 = -0.0992125984"
    assert "".join(texts[13:17]) == "1110"
    assert texts_of(9.0, "int4", largest=0.7)[-1] == "7 × 0.7 / 7 = 0.7"


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_a_number_without_significand_is_named(value: float) -> None:
    assert texts_of(value, "float16")[-1] == str(value)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="format is 'float12'; expected one of float64"):
        draw_number_format(1.0, ["float12"])
    with pytest.raises(ValueError, match="largest is None; int8 needs"):
        draw_number_format(1.0, ["int8"])
    with pytest.raises(ValueError, match="largest is -1; int4 needs"):
        draw_number_format(1.0, ["int4"], largest=-1)
