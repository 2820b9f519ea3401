"""`bpe-llama doctor`: the versions, packages and CPU instructions that bpe-llama finds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Annotated

import typer

from bpe_llama import __version__
from bpe_llama._core import simd_tier, simd_tiers

EXAMPLE = "Example: bpe-llama doctor"

_EXTRAS = {
    "model": ("torch", "safetensors", "matplotlib", "gguf"),
    "serve": ("fastapi", "prometheus-client", "pydantic", "starlette", "regex", "uvicorn"),
    "structured": ("llguidance",),
    "hub": ("huggingface-hub", "datasets"),
    "parquet": ("pyarrow",),
    "scale": ("ray",),
    "eval": ("lm-eval",),
    "plot": ("matplotlib",),
    "transformers": ("transformers",),
    "float8": ("torchao",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
}
"""The packages of each extra of pyproject.toml."""


def command(
    torch: Annotated[bool, typer.Option("--torch", help="Import torch, and describe its devices too.")] = False,
) -> None:
    """Print versions, processors, CPU instructions, and which extras are installed."""
    lines = {
        "bpe-llama": __version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "processors": str(_processors()),
        "instructions": _instructions(),
        "extras": ", ".join(f"{extra} ({_missing(packages)})" for extra, packages in _EXTRAS.items()),
    }
    if torch:
        lines["torch"] = _torch()
    width = max(map(len, lines))
    for name, value in lines.items():
        typer.echo(f"{name:<{width}}  {value}")


def _processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _instructions() -> str:
    """Return the tier of instructions in use, and all tiers of the CPU."""
    cap = os.environ.get("BPE_LLAMA_SIMD")
    why = f"BPE_LLAMA_SIMD={cap}" if cap else "the best of this CPU; BPE_LLAMA_SIMD caps them"
    return f"{simd_tier()} ({why}); this CPU has {', '.join(simd_tiers())}"


def _missing(packages: tuple[str, ...]) -> str:
    """Return "installed", or the packages of an extra that are not installed."""
    missing = []
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    return f"without {', '.join(missing)}" if missing else "installed"


def _torch() -> str:
    """Return torch's version and devices."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("--torch needs torch: pip install 'bpe_llama[model]'") from error
    cpu = f"{torch.__version__}, CPU {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        return f"{cpu}, no CUDA GPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{cpu}, CUDA {torch.version.cuda}: {', '.join(names)}"
