"""Files of named tensors: safetensors, and PyTorch's ``.bin`` and ``.pth``, of which tensors alone are unpickled."""

from __future__ import annotations

import math
import pickle
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FLOATS = ("float32", "bfloat16", "float16", "float64")
_SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
REOPENINGS = 32
"""PyTorch's files are mapped anew after each such share: a mapping holds every page it has touched in memory."""


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies, its shape, and its dtype: one of `FLOATS`, or the file's own name of another."""

    path: Path
    shape: tuple[int, ...]
    dtype: str


def stored_in(path: Path) -> dict[str, Stored]:
    """Return what a file holds under each name; no data is read.

    Raises:
        ValueError: If the file is damaged, or holds something else than tensors.
    """
    if path.suffix != ".safetensors":
        return {
            name: Stored(path, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in open_pickled(path).items()
        }
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_slice(name)
                dtype = part.get_dtype()
                found[name] = Stored(path, tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(dtype, dtype))
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from error
    return found


def read(path: Path, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors of a file, one at a time.

    Cost: memory for one tensor, whatever the size of the file.
    """
    if path.suffix == ".safetensors":
        for name in names:
            # Opened anew for each tensor: a mapping kept open would hold every page it has touched in memory.
            with safe_open(path, framework="pt") as file:
                yield name, file.get_tensor(name)
        return
    tensors, done, limit = open_pickled(path), 0, reopening_after([path])
    for name in names:
        if done > limit:
            tensors, done = open_pickled(path), 0
        yield name, tensors[name]
        done += tensors[name].nbytes


def reopening_after(paths: Sequence[Path]) -> float:
    """Return after how many bytes PyTorch's files had better be mapped anew; never if they are read, not mapped."""
    mapped = all(is_zipfile(path) for path in paths)
    return sum(path.stat().st_size for path in paths) // REOPENINGS if mapped else math.inf


def open_pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch file, mapped where it can be, unpickled with ``weights_only=True``.

    Raises:
        ValueError: If the file is damaged, or holds something else than named tensors.
    """
    try:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            tensors = torch.load(path, map_location="cpu", weights_only=True)  # the format of torch before 1.6
    except (OSError, RuntimeError, pickle.UnpicklingError, BadZipFile, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition(". ")[0]  # what follows says how to load it all the same
        raise ValueError(f"{path}: damaged, or not a file of tensors alone ({reason})") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path}: expected a table of named tensors")
    return tensors


def stored_together(paths: Iterable[Path]) -> dict[str, Stored]:
    """Return what several files hold under each name.

    Raises:
        ValueError: If a file is damaged, or two files hold different tensors of one name.
    """
    found: dict[str, Stored] = {}
    for path in paths:
        for name, stored in stored_in(path).items():
            before = found.setdefault(name, stored)
            if before is not stored and not _are_equal(name, before, stored):
                raise ValueError(
                    f"{path}: holds {name}, and so does {before.path.name} with other values; expected one"
                )
    return found


def _are_equal(name: str, one: Stored, other: Stored) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    (_, first), (_, second) = (next(read(stored.path, [name])) for stored in (one, other))
    return torch.equal(first, second)
