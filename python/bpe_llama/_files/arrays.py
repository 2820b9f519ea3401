"""Write `.npy` files that grow, and open those of strangers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bpe_llama._files.atomic_write import atomic_write
from bpe_llama._files.read_write import PathLike, open_regular

_MAGIC = b"\x93NUMPY"


def open_array(path: PathLike) -> np.memmap[Any, np.dtype[Any]]:
    """Return the array of a `.npy` file, memory-mapped: its size is compared with the file's, and nothing is unpickled.

    Raises:
        OSError: If there is no such file.
        ValueError: If the file is no complete `.npy` file, or holds Python objects; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/ids.npy", np.arange(3))
        ...     open_array(f"{folder}/ids.npy").sum()
        np.int64(3)
    """
    with open_regular(path) as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{path}: not a .npy file; `bpe-llama encode-corpus` makes ids of texts")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python, which may fail in any way
        raise ValueError(f"{path}: not a complete .npy file: {error!s:.200}") from None


class ArrayFile:
    """A `.npy` file of one dimension that grows; `begin_array` makes one.

    Attributes:
        dtype: The dtype in which values are written.
        size: The number of values so far.
    """

    def __init__(self, file: IO[bytes], dtype: npt.DTypeLike) -> None:
        """Write to an open file."""
        self._file, self.dtype, self.size = file, np.dtype(dtype), 0

    def append(self, values: npt.NDArray[Any]) -> None:
        """Write values, converted to the file's dtype, which must hold them."""
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.size += len(values)


@contextmanager
def begin_array(path: Path, dtype: npt.DTypeLike) -> Iterator[ArrayFile]:
    """Yield a `.npy` file to append to, which is complete under its name at the end, or not there.

    Raises:
        OSError: As `atomic_write`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with begin_array(Path(folder) / "ids.npy", "<u2") as array:
        ...         array.append(np.array([1, 2]))
        ...         array.append(np.array([3]))
        ...     np.load(f"{folder}/ids.npy")
        array([1, 2, 3], dtype=uint16)
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        array = ArrayFile(file, dtype)
        _write_header(file, array)
        yield array
        file.seek(0)
        _write_header(file, array)  # of the same length: numpy leaves room for any size


def _write_header(file: IO[bytes], array: ArrayFile) -> None:
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": (array.size,)}
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
