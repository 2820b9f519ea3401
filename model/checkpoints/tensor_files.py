"""Files of named tensors: safetensors, and PyTorch's ``.bin`` and ``.pth``, which are unpickled as tensors only."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter

from bpe_llama._files import atomic_write, check_regular

FLOATS = ("float32", "bfloat16", "float16", "float64")
_SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
REMAPPINGS = 32
"""A PyTorch file is mapped again after each 1/32 of its bytes, since a mapping keeps the pages it read in memory."""


@dataclass(frozen=True)
class Stored:
    """The file, shape and dtype of one tensor; the dtype is one of `FLOATS`, or else the file's name of it."""

    path: Path
    shape: tuple[int, ...]
    dtype: str


def stored_in(path: Path) -> dict[str, Stored]:
    """Return the tensors of a file by name, without their data.

    Raises:
        ValueError: If the file is damaged, or has entries that are not tensors.
    """
    check_regular(path)
    if path.suffix != ".safetensors":
        return {
            name: Stored(path, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in open_pickled(path).items()
        }
    found = {}
    with _damage_named(path), safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            part = file.get_slice(name)
            dtype = part.get_dtype()
            found[name] = Stored(path, tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(dtype, dtype))
    return found


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from error


def read(path: Path, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the named tensors of a file, one at a time.

    Raises:
        ValueError: If the file is damaged, also since `stored_in` read its table.

    Cost: memory for one tensor, whatever the size of the file.
    """
    if path.suffix == ".safetensors":
        for name in names:
            # Opened for each tensor, since a mapping keeps all pages it has read in memory.
            with _damage_named(path), safe_open(path, framework="pt") as file:
                yield name, file.get_tensor(name)
        return
    tensors, read_bytes, limit = open_pickled(path), 0, remap_after([path])
    for name in names:
        if read_bytes > limit:
            tensors, read_bytes = open_pickled(path), 0
        yield name, tensors[name]
        read_bytes += tensors[name].nbytes


def check_floats(places: Iterable[tuple[str, Stored]]) -> None:
    """Raise a ValueError for a tensor, its name in its file and the file, that does not hold floats."""
    for name, stored in places:
        if stored.dtype not in FLOATS:
            raise ValueError(f"{stored.path}: {name} is stored as {stored.dtype}; expected {', '.join(FLOATS)}")


def read_one(name: str, stored: Stored) -> Tensor:
    """Return the tensor of this name in its file; see `read` for the errors."""
    return next(read(stored.path, [name]))[1]


def read_places(places: Mapping[str, tuple[str, Stored]]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors by new names, file by file; a place is a tensor's name in its file, and the file."""
    by_path: dict[Path, dict[str, str]] = {}
    for name, (theirs, stored) in places.items():
        by_path.setdefault(stored.path, {})[theirs] = name
    for path, names in by_path.items():
        for theirs, tensor in read(path, names):
            yield names[theirs], tensor


def read_all(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged; the message names it.
    """
    check_regular(path)
    with _damage_named(path):
        return load_file(path)


def save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Raises:
        OSError: If it cannot be written, as on a full disk; the message has the size of the tensors.
    """
    with atomic_write(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:
            found = _OS_ERROR.search(str(error))
            if found is None:
                raise
            size = sum(tensor.nbytes for tensor in tensors.values())
            number = int(found[1])
            raise OSError(number, f"{os.strerror(number)}; the tensors are {size:,} bytes", str(path)) from None


def remap_after(paths: Sequence[Path]) -> float:
    """Return after how many bytes PyTorch files should be mapped again; infinity if they cannot be mapped."""
    mapped = all(is_zipfile(path) for path in paths)
    return sum(path.stat().st_size for path in paths) // REMAPPINGS if mapped else math.inf


def open_pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a PyTorch file, memory-mapped if possible, unpickled with ``weights_only=True``.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If the file is damaged, has entries that are not named tensors, or describes tensors of more bytes
            than it has.
    """
    check_regular(path)
    with open(path, "rb"):  # whatever torch raises below is about the content
        pass
    try:
        _check_not_compressed(path)
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            tensors = torch.load(path, map_location="cpu", weights_only=True)  # the format of torch before 1.6
    except Exception as error:  # the unpickler runs opcodes of the file, which may fail in any way
        reason = str(error).partition(". ")[0]  # torch's next sentence advises weights_only=False
        raise ValueError(f"{path}: damaged, or not a file of tensors alone ({reason})") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and type(tensor) in (Tensor, Parameter) and _has_numbers(tensor)
        for name, tensor in tensors.items()
    ):
        raise ValueError(f"{path}: expected a table of named tensors")
    described, size = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if described > 2 * size:  # tied weights are described twice
        raise ValueError(f"{path}: describes tensors of {described:,} bytes; expected at most twice its {size:,} bytes")
    return tensors


def _has_numbers(tensor: Tensor) -> bool:
    """Return whether a tensor holds all its numbers: it is not sparse, and not on the device ``meta``."""
    return tensor.layout == torch.strided and not tensor.is_meta


def _check_not_compressed(path: Path) -> None:
    if is_zipfile(path):
        with ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != ZIP_STORED or entry.file_size > path.stat().st_size:
                    raise ValueError(f"{entry.filename} is compressed; expected it stored as torch.save does")


def stored_together(paths: Iterable[Path]) -> dict[str, Stored]:
    """Return the tensors of several files by name, without their data.

    Raises:
        ValueError: If a file is damaged, or two files have different tensors of one name.
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
    return torch.equal(read_one(name, one), read_one(name, other))
