"""Read the header of a GGUF file: metadata and the places of tensors, without the tensors and without torch.

The tokenizer (`Tokenizer.from_gguf`) and the model (`bpe_llama.model.checkpoints.gguf`) share this parser. It checks
every length against the rest of the file before it allocates memory, so a truncated or hostile file costs no more than
an error message. The `gguf` package builds an array object for every string, which takes seconds for a vocabulary of
50,000 tokens.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bpe_llama._arguments import path as checked_path
from bpe_llama._core import shown
from bpe_llama._files import open_regular

_MAGIC = b"GGUF"
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4
_MAX_NUMBERS = 1 << 22  # in all arrays: two for each of two million tokens; a list takes up to 16 times their bytes
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")

# Metadata value types: type id -> struct letter.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# Tensor types of ggml: type id -> (name, elements a block, bytes a block). The error for an unsupported type names it.
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


@dataclass(frozen=True)
class TensorInfo:
    """The place of one tensor.

    `shape` is in NumPy's order (GGUF stores it reversed), `start` is the byte offset in the file `path`, `type_id` is a
    key of `TENSOR_TYPES`, and `nbytes` is None if the type is unknown.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    start: int
    nbytes: int | None
    path: Path

    @property
    def type_name(self) -> str:
        """The name of the type, such as `"Q4_1"`; `"type 99"` if it is unknown."""
        known = TENSOR_TYPES.get(self.type_id)
        return known[0] if known else f"type {self.type_id}"


@dataclass(frozen=True)
class GGUFHeader:
    """The header of a GGUF file.

    `metadata` maps keys such as `"llama.block_count"` to int, float, bool, str or lists; `tensors` maps GGUF's tensor
    names to their places, in file order.
    """

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_gguf_header(path: str | os.PathLike[str]) -> GGUFHeader:
    """Return the metadata and the tensor table of the GGUF file at `path`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not GGUF 2 or 3, is truncated, or contradicts itself; the message says where.

    Cost: one pass over the header, about 0.1 s for a vocabulary of 50,000 tokens; tensor data is not read.

    Example:
        >>> read_gguf_header("SmolLM2-135M-Instruct.Q4_1.gguf").metadata["llama.block_count"]  # doctest: +SKIP
        30
    """
    path = checked_path("path", path)
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise ValueError(f"{path}: not a GGUF file: it is empty")
        return _Parser(path, file, size).header()


def read_gguf_model_header(path: str | os.PathLike[str]) -> GGUFHeader:
    """Return the header of a model in one file or several: `name-00001-of-00003.gguf` and so on.

    Args:
        path: The file, or one of several. Metadata is that of the first; each tensor names its file.

    Raises:
        FileNotFoundError: If one of the files is absent.
        ValueError: As `read_gguf_header`; or if the files do not belong together.

    Source: `llama-gguf-split` of llama.cpp.
    """
    header = read_gguf_header(path)
    count = header.metadata.get("split.count", 0)
    if count in (0, 1):
        return header
    if not isinstance(count, int) or not 0 < count < 100_000:
        raise ValueError(f"{header.path}: metadata 'split.count' is {shown(count)}, expected a number of files")
    name = _SPLIT_NAME.fullmatch(header.path.name)
    if name is None or int(name[3]) != count:
        raise ValueError(
            f"{header.path}: metadata 'split.count' is {count}: one of several files, expected a name that ends with "
            f"-00001-of-{count:05}.gguf"
        )
    paths = [header.path.with_name(f"{name[1]}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    absent = [other.name for other in paths if not other.is_file()]
    if absent:
        raise FileNotFoundError(f"{header.path}: files of the same model are absent: {', '.join(absent)}")
    headers = [read_gguf_header(other) for other in paths]
    tensors: dict[str, TensorInfo] = {}
    for number, part in enumerate(headers):
        for key, expected in (("split.no", number), ("split.count", count)):
            if part.metadata.get(key) != expected:
                raise ValueError(
                    f"{part.path}: metadata {shown(key)} is {shown(part.metadata.get(key))}, expected {expected}"
                )
        for tensor, info in part.tensors.items():
            if tensor in tensors:
                raise ValueError(f"{part.path}: tensor {shown(tensor)} is also in {tensors[tensor].path.name}")
            tensors[tensor] = info
    total = headers[0].metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ValueError(
            f"{paths[0]}: metadata 'split.tensors.count' is {shown(total)}, but the {count} files hold {len(tensors)}"
        )
    return GGUFHeader(paths[0], headers[0].version, headers[0].metadata, tensors)


class _Parser:
    """A cursor over the file's bytes with bounds checks. A memory map would end the process if the file shrinks."""

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.at = 0
        self.what = "the header"
        self.numbers = 0  # of the arrays so far

    def fail(self, message: str) -> ValueError:
        return ValueError(f"{self.path}: {message}")

    def need(self, nbytes: int) -> None:
        """Raise unless the file has `nbytes` more."""
        if nbytes > self.size - self.at:
            raise self.fail(
                f"truncated GGUF file: {self.what} needs {nbytes:,} bytes at offset {self.at:,}, "
                f"the file ends at {self.size:,}"
            )

    def read(self, nbytes: int) -> bytes:
        """Advance by `nbytes` and return them."""
        self.need(nbytes)
        data = self.file.read(nbytes)
        if len(data) < nbytes:
            raise self.fail(f"the file shrank while it was read: {self.what} at offset {self.at:,} is not there")
        self.at += nbytes
        return data

    def scalar(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.read(struct.calcsize("<" + letter)))[0]

    def string(self) -> str:
        length = self.scalar("Q")
        begin = self.at
        try:
            return self.read(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{self.what}: text at offset {begin:,} is not UTF-8 ({error.reason})") from None

    def value(self, kind: int, nesting: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            if nesting == _MAX_NESTING:
                raise self.fail(f"{self.what} nests arrays deeper than {_MAX_NESTING}")
            item_kind, count = self.scalar("I"), self.scalar("Q")
            if item_kind in _SCALARS:
                letter = _SCALARS[item_kind]
                nbytes = count * struct.calcsize("<" + letter)
                self.need(nbytes)
                self.numbers += count
                if self.numbers > _MAX_NUMBERS:
                    most = f"expected at most {_MAX_NUMBERS:,} in all arrays"
                    raise self.fail(f"{self.what} has an array of {count:,} numbers; {most}")
                return list(struct.unpack(f"<{count}{letter}", self.read(nbytes)))
            # Each string or array has a length field of 8 bytes, which bounds the count before the list is built.
            self.need(count * 8)
            return [self.value(item_kind, nesting + 1) for _ in range(count)]
        raise self.fail(f"{self.what} has unknown value type {kind} (expected 0 to 12)")

    def header(self) -> GGUFHeader:
        magic = self.read(min(len(_MAGIC), self.size))
        if magic != _MAGIC:
            raise self.fail(f"not a GGUF file: it begins with {magic!r}, expected {_MAGIC!r}")
        version = self.scalar("I")
        if version & 0xFFFF == 0:
            raise self.fail("a big-endian GGUF file; only little-endian ones are read")
        if version not in (2, 3):
            raise self.fail(f"GGUF version {version}, expected 2 or 3")
        tensor_count, metadata_count = self.scalar("Q"), self.scalar("Q")

        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            self.what = "a metadata key"
            key = self.string()
            self.what = f"metadata {shown(key)}"
            if key in metadata:
                raise self.fail(f"{self.what} occurs twice")
            metadata[key] = self.value(self.scalar("I"))

        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            raise self.fail(f"general.alignment is {shown(alignment)}, expected a positive multiple of 8")
        places = [self.tensor_place() for _ in range(tensor_count)]
        data_start = -(-self.at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, type_id, offset in places:
            if name in tensors:
                raise self.fail(f"tensor {shown(name)} occurs twice")
            if offset % alignment:
                raise self.fail(f"tensor {shown(name)} lies at offset {offset}, not a multiple of {alignment}")
            tensors[name] = self.tensor_info(name, shape, type_id, data_start + offset)
        self.check_apart(tensors)
        return GGUFHeader(self.path, version, metadata, tensors)

    def check_apart(self, tensors: dict[str, TensorInfo]) -> None:
        """Raise if two tensors share bytes: the file would describe more than it holds."""
        before: TensorInfo | None = None
        for info in sorted(tensors.values(), key=lambda info: info.start):
            if before is not None and before.start + (before.nbytes or 0) > info.start and info.nbytes != 0:
                raise self.fail(
                    f"tensors {shown(before.name)} and {shown(info.name)} overlap: the second begins at byte "
                    f"{info.start:,}, the first ends at {before.start + (before.nbytes or 0):,}"
                )
            before = info if info.nbytes != 0 else before

    def tensor_place(self) -> tuple[str, tuple[int, ...], int, int]:
        self.what = "a tensor name"
        name = self.string()
        self.what = f"the description of tensor {shown(name)}"
        dimensions = self.scalar("I")
        if dimensions > _MAX_DIMENSIONS:
            raise self.fail(f"tensor {shown(name)} has {dimensions} dimensions, expected at most {_MAX_DIMENSIONS}")
        shape = tuple(self.scalar("Q") for _ in range(dimensions))
        return name, shape[::-1], self.scalar("I"), self.scalar("Q")

    def tensor_info(self, name: str, shape: tuple[int, ...], type_id: int, start: int) -> TensorInfo:
        known = TENSOR_TYPES.get(type_id)
        if known is None:
            return TensorInfo(name, shape, type_id, start, None, self.path)
        type_name, block, block_bytes = known
        row = shape[-1] if shape else 1
        if row % block:
            raise self.fail(f"tensor {shown(name)} has rows of {row}, {type_name} needs a multiple of {block}")
        nbytes = math.prod(shape) // block * block_bytes
        if start + nbytes > self.size:
            raise self.fail(
                f"truncated GGUF file: tensor {shown(name)} ends at byte {start + nbytes:,}, the file at {self.size:,}"
            )
        return TensorInfo(name, shape, type_id, start, nbytes, self.path)
