"""How a number is stored: the bits of float64 down to int4, encoded, decoded and drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpe_llama.draw.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format: sign, exponent and fraction, as in IEEE 754.

    ``exponent_bits`` and ``fraction_bits`` are the sizes of the fields. Without ``has_infinity`` the largest exponent
    stands for numbers, too, and only the pattern of all ones is NaN.
    """

    exponent_bits: int
    fraction_bits: int
    has_infinity: bool = True

    @property
    def bits(self) -> int:
        """Return the size of a number in bits."""
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def smallest_exponent(self) -> int:
        """Return the exponent of the smallest normal number, and of all subnormal ones."""
        return 2 - (1 << self.exponent_bits - 1)

    @property
    def largest_pattern(self) -> int:
        """Return the bits of the largest finite number."""
        ones = (1 << self.bits - 1) - 1  # all of exponent and fraction
        return ones - (1 << self.fraction_bits) if self.has_infinity else ones - 1

    def encode(self, value: float) -> int:
        """Return the bits of the nearest number, ties to the even pattern.

        Beyond the range that is infinity, or the largest number in a format without infinity.
        """
        sign = (math.copysign(1.0, value) < 0) << (self.bits - 1)
        if math.isnan(value):
            return sign | (1 << self.bits - 1) - 1
        beyond = self.largest_pattern + self.has_infinity
        if math.isinf(value):
            return sign | beyond
        _, above = math.frexp(value)  # abs(value) is at least 2 ** (above - 1) and less than 2 ** above
        exponent = max(above - 1, self.smallest_exponent) if value else self.smallest_exponent
        steps = round(math.ldexp(abs(value), self.fraction_bits - exponent))
        pattern = (exponent - self.smallest_exponent << self.fraction_bits) + steps
        return sign | min(pattern, beyond)

    def decode(self, pattern: int) -> float:
        """Return the number that the bits stand for."""
        sign = -1.0 if pattern >> (self.bits - 1) else 1.0
        pattern &= (1 << self.bits - 1) - 1
        if pattern > self.largest_pattern:
            return sign * (math.inf if self.has_infinity and pattern == self.largest_pattern + 1 else math.nan)
        exponent, fraction = divmod(pattern, 1 << self.fraction_bits)
        if exponent:
            fraction += 1 << self.fraction_bits  # the leading 1, which is not stored
        exponent = max(exponent, 1) - 1 + self.smallest_exponent
        return sign * math.ldexp(fraction, exponent - self.fraction_bits)


FLOATS = {
    "float64": FloatFormat(11, 52),
    "float32": FloatFormat(8, 23),
    "float16": FloatFormat(5, 10),
    "bfloat16": FloatFormat(8, 7),
    "float8_e4m3": FloatFormat(4, 3, has_infinity=False),
    "float8_e5m2": FloatFormat(5, 2),
}
"""The floating-point formats by name, with the bits of exponent and fraction. float8: arXiv:2209.05433, table 1."""

INTEGERS = {"int8": 8, "int4": 4}
"""The integer formats and their bits."""

_COLOURS = {"sign": "#E69F00", "exponent": "#56B4E9", "fraction": "#F0E442", "integer": "#F0E442"}  # Okabe and Ito's
_PER_LINE = 32


def draw_number_format(value: float, formats: Sequence[str] = tuple(FLOATS), *, largest: float | None = None) -> Figure:
    """Return a picture of the bits of a number in several formats, and of the value that each of them stores.

    Args:
        value: The number; it is rounded to the nearest one that a format has.
        formats: Of ``"float64"``, ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"float8_e4m3"``, ``"float8_e5m2"``,
            ``"int8"`` and ``"int4"``.
        largest: For ``int8`` and ``int4``: the value of the largest integer, 127 or 7. It is that of the largest
            weight in the group of weights that share a scale.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no such format, or an integer format without a positive ``largest``.

    Example:
        >>> figure = draw_number_format(0.1, ["float32", "bfloat16"])
        >>> figure.savefig("tenth.svg")  # doctest: +SKIP
    """
    rows = [_fields(float(value), name, largest) for name in formats]
    lines = [math.ceil(len(bits) / _PER_LINE) for bits, _, _ in rows]
    height = sum(0.8 + 0.26 * count for count in lines)
    figure = new_figure(5.2, height + 0.1)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.05, _PER_LINE + 0.05), ylim=(height, 0))
    axes.axis("off")
    top = 0.0
    for name, (bits, parts, stored), count in zip(formats, rows, lines, strict=True):
        sizes = ", ".join(f"{parts.count(part)} {part}" for part in dict.fromkeys(parts))
        axes.text(0, top + 0.2, name, weight="bold", va="center")
        axes.text(_PER_LINE, top + 0.2, f"bits: {sizes}", va="center", ha="right")
        for index, (bit, part) in enumerate(zip(bits, parts, strict=True)):
            line, column = divmod(index, _PER_LINE)
            _box(axes, column, top + 0.36 + 0.26 * line, bit, _COLOURS[part])
        top += 0.36 + 0.26 * count
        axes.text(0, top + 0.16, stored, va="center")
        top += 0.44
    return figure


def _fields(value: float, name: str, largest: float | None) -> tuple[str, list[str], str]:
    """Return the bits, the field of each, and the stored value as text."""
    if name in INTEGERS:
        size = INTEGERS[name]
        most = 2 ** (size - 1) - 1
        if largest is None or not (math.isfinite(largest) and largest > 0) or not math.isfinite(value):
            raise ValueError(
                f"value is {value} and largest is {largest}; {name} needs finite numbers, the second positive: "
                f"the value of {most}"
            )
        code = max(-most, min(most, round(value / largest * most)))
        text = f"{code} × {largest:.6g} / {most} = {code * largest / most:.9g}"  # noqa: RUF001
        return f"{code % 2**size:0{size}b}", ["integer"] * size, text
    if name not in FLOATS:
        raise ValueError(f"format is {name!r}; expected one of {', '.join([*FLOATS, *INTEGERS])}")
    kind = FLOATS[name]
    pattern = kind.encode(value)
    parts = ["sign"] + ["exponent"] * kind.exponent_bits + ["fraction"] * kind.fraction_bits
    return f"{pattern:0{kind.bits}b}", parts, _product(kind, pattern)


def _product(kind: FloatFormat, pattern: int) -> str:
    """Return a stored number as a product of a significand and a power of two."""
    stored = kind.decode(pattern)
    if not math.isfinite(stored) or not stored:
        return f"{stored}"
    exponent = max(math.frexp(stored)[1] - 1, kind.smallest_exponent)
    digits = 17 if kind.bits == 64 else 9
    return f"{stored / 2.0**exponent:.8g} × $2^{{{exponent}}}$ = {stored:.{digits}g}"  # noqa: RUF001


def _box(axes: Any, column: int, top: float, bit: str, colour: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column, top), 1, 0.26, facecolor=colour, edgecolor="black", linewidth=0.6))
    axes.text(column + 0.5, top + 0.135, bit, size=9, ha="center", va="center", family="monospace")
