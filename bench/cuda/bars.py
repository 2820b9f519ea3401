"""The bars of the benchmarks on a GPU, and the rooflines of memory and products, measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import measure


class Bar(NamedTuple):
    """What a figure has to reach, and what it aims at.

    Attributes:
        least: The bar.
        aim: The aim; None if there is none.
        unit: What follows a figure: ``"%"`` for shares, ``"x"`` for ratios, ``"us"`` for times, which have to be less.
    """

    least: float
    aim: float | None
    unit: str


BARS = {
    ("decode", "1b"): Bar(55, 75, "%"),
    ("decode", "8b"): Bar(70, 85, "%"),
    ("against transformers", "1b"): Bar(4, None, "x"),
    ("against transformers", "8b"): Bar(4, None, "x"),
    ("against bfloat16", "int8"): Bar(1.5, 1.8, "x"),
    ("against bfloat16", "int4"): Bar(2, 2.8, "x"),
    ("against batch 1", "8b"): Bar(30, 45, "x"),
    ("prompt of 4096", "8b"): Bar(60, 75, "%"),
    ("sampler", ""): Bar(40, 15, "us"),
    ("training", "bfloat16"): Bar(40, 55, "%"),
    ("training", "float8"): Bar(1.25, None, "x"),
}
"""By what is measured, and the shape or format."""


def beside_bar(value: float, what: str, of: str = "") -> str:
    """Return a figure and what it has to reach; without a bar the figure alone.

    Example:
        >>> beside_bar(72.3, "decode", "8b"), beside_bar(50, "sampler")
        ('72% (bar 70%: reached, aim 85%)', '50us (bar 40us: MISSED, aim 15us)')
    """
    bar = BARS.get((what, of))
    if bar is None:
        return f"{value:.3g}"
    said = f"{value:.0f}" if bar.unit in ("%", "us") else f"{value:.2f}"
    reached = value <= bar.least if bar.unit == "us" else value >= bar.least
    aim = f", aim {bar.aim:g}{bar.unit}" if bar.aim is not None else ""
    return f"{said}{bar.unit} (bar {bar.least:g}{bar.unit}: {'reached' if reached else 'MISSED'}{aim})"


def require_cuda(device: str) -> None:
    """End the script, with the reason, if the device is CUDA and there is none.

    Raises:
        SystemExit: With the exit code 3.
    """
    if device == "cuda" and not torch.cuda.is_available():
        print("refused: torch sees no CUDA GPU here; --device cpu --shape tiny shows that the script runs")
        raise SystemExit(3)


def about(device: str) -> str:
    """Return a line: card, versions, commit and date of the run, which stand beside every figure."""
    machine = measure.machine()
    card = torch.cuda.get_device_name() if device == "cuda" else machine["processor"]
    versions = measure.versions("torch", "triton", "transformers", "torchao")
    said = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f"{card}; {said}; commit {machine['commit'] or 'unknown'}; {machine['date']}"


def seconds_of(run: Callable[[], object], device: str, calls: int = 10, rounds: int = 5) -> float:
    """Return the seconds of a call, the best of several rounds after one for warm-up."""
    times = []
    for _ in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        _wait(device)
        times.append((time.perf_counter() - start) / calls)
    return min(times[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def copy_bandwidth(device: str) -> float:
    """Return the bytes that a large copy moves in a second, read and written."""
    size = 2**30 if device == "cuda" else 2**24
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source), device)


def product_rate(device: str, dtype: torch.dtype = torch.bfloat16) -> float:
    """Return the floating-point operations of a large matrix product in a second, on random numbers."""
    size = 8192 if device == "cuda" else 256
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in "ab")
    return 2 * size**3 / seconds_of(lambda: a @ b, device)


def random_model(model_class: Any, config: Any, device: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a model of this package with random weights that are drawn on the device."""
    model = model_class(config, device="meta", dtype=dtype)
    model.allocate(torch.device(device))
    generator = torch.Generator(device).manual_seed(0)

    def draw(weight: Tensor) -> None:
        weight.fill_(1.0) if weight.ndim == 1 else weight.normal_(0.0, 0.02, generator=generator)

    with torch.no_grad():
        for weight in model.parameters():
            draw(weight)
    return model.eval()
