"""`bpe-llama doctor`: the versions, packages, CPU instructions, GPUs and caches that bpe-llama finds."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from bpe_llama import __version__
from bpe_llama._core import simd_tier, simd_tiers
from bpe_llama.cli.options import JsonOption

EXAMPLE = "Example: bpe-llama doctor"

_EXTRAS = {
    "cli": ("rich", "typer"),
    "chat": ("jinja2",),
    "model": ("torch", "safetensors", "matplotlib", "gguf", "regex"),
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
    torch: Annotated[
        bool | None,
        typer.Option(
            "--torch/--no-torch", help="Import torch, and describe its CPU and GPU; default: if it is installed."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print versions, the CPU backend and why it was chosen, GPUs, which extras are installed, and caches."""
    from bpe_llama._loading.published.cache import cache_folders

    lines: dict[str, object] = {
        "bpe-llama": __version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "processors": _processors(),
        "instructions": _instructions(),
        "extras": {extra: _missing(packages) for extra, packages in _EXTRAS.items()},
    }
    if find_spec("torch") is not None if torch is None else torch:
        lines |= _torch()
    lines["caches"] = {str(folder): _size(folder) for folder in cache_folders()}
    if as_json:
        typer.echo(json.dumps(lines, ensure_ascii=False, indent=2))
        return
    width = max(map(len, lines))
    for name, value in lines.items():
        for place, row in enumerate(_rows(name, value)):
            typer.echo(f"{name if place == 0 else '':<{width}}  {row}")


def _rows(name: str, value: object) -> list[str]:
    """Return the lines that show a value."""
    if not isinstance(value, dict):
        return [str(value)]
    if name == "caches":
        return [f"{folder}: {_in_words(size)}" for folder, size in value.items()]
    return [", ".join(f"{key} ({shown})" for key, shown in value.items())]


def _size(folder: Path) -> int | None:
    """Return the bytes of the files in a folder, links not followed; None if there is no such folder."""
    if not folder.is_dir():
        return None
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += os.lstat(os.path.join(where, name)).st_size
    return total


def _in_words(size: int | None) -> str:
    return "not there" if size is None else f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


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


def _torch() -> dict[str, str]:
    """Return what torch says of itself, of products on the CPU, and of GPUs."""
    try:
        import torch

        from bpe_llama.model.backends.cpu.dispatch import native_rows
    except ImportError as error:
        raise ImportError(f"--torch needs {error.name}: pip install 'bpe_llama[model]'") from error
    threads = f"{torch.get_num_threads()} threads, OMP_NUM_THREADS is {os.environ.get('OMP_NUM_THREADS', 'not set')}"
    products = []
    for dtype in (torch.float32, torch.bfloat16):
        rows = native_rows([torch.nn.Linear(2, 2, dtype=dtype)])
        limit = "always" if rows >= sys.maxsize else f"up to {rows} rows, then PyTorch"
        products.append(f"{str(dtype).removeprefix('torch.')}: native kernels {limit}")
    return {
        "torch": f"{torch.__version__}, CPU {torch.backends.cpu.get_cpu_capability()}, {threads}",
        "CPU products": "; ".join(products),
        "CUDA": _cuda(torch),
    }


def _cuda(torch: Any) -> str:
    """Return the GPUs, or why there is none."""
    if torch.version.cuda is None:
        return f"none: torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"none: torch is built for CUDA {torch.version.cuda}, but finds no GPU or no driver"
    triton = "with Triton" if find_spec("triton") is not None else "without Triton"
    gpus = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        gpus.append(f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, capability {gpu.major}.{gpu.minor}")
    return f"{torch.version.cuda} {triton}: {'; '.join(gpus)}"
