"""The GGUF header reader: equal to the `gguf` package's reader, and unharmed by damaged files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpe_llama._gguf.header import TENSOR_TYPES, _Parser, read_gguf_header
from tests.gguf_files import finish

gguf = pytest.importorskip("gguf", reason="the gguf package writes the files read here")


def write_small_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_string("general.name", "małe Ω")
    writer.add_array("tokenizer.ggml.tokens", ["a", "Ġb", "語"])
    writer.add_array("tokenizer.ggml.token_type", [1, 1, 3])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 2.0])
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("two", np.ones((4,), dtype=np.float16))
    quantized = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("three", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    finish(writer)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


def test_metadata_and_tensors_equal_the_gguf_packages_reader(small: Path) -> None:
    header = read_gguf_header(small)
    reader = gguf.GGUFReader(small)
    theirs = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert header.metadata == theirs
    assert [(t.name, t.type_name, t.start, t.nbytes) for t in header.tensors.values()] == [
        (t.name, t.tensor_type.name, t.data_offset, t.n_bytes) for t in reader.tensors
    ]
    assert header.tensors["one"].shape == (2, 3)
    assert header.tensors["three"].shape == (2, 64)


def test_block_sizes_equal_the_gguf_packages() -> None:
    for number, (name, block, nbytes) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, nbytes))


def test_every_truncation_is_a_value_error(small: Path, tmp_path: Path) -> None:
    whole = small.read_bytes()
    last = max(t.start + (t.nbytes or 0) for t in read_gguf_header(small).tensors.values())
    cut = tmp_path / "cut.gguf"
    for length in range(last):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"truncated|not a GGUF"):
            read_gguf_header(cut)


def test_lengths_beyond_the_file_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    for item_kind in (4, 8, 9):
        path.write_bytes(header + struct.pack("<IIQ", 9, item_kind, 1 << 60))
        with pytest.raises(ValueError, match="truncated GGUF file: metadata 'k' needs"):
            read_gguf_header(path)


def test_numbers_take_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "numbers.gguf"
    arrays = [struct.pack("<Q1sIIQ", 1, key, 9, kind, 1 << 21) + bytes(1 << 21) for key, kind in ((b"a", 0), (b"b", 7))]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + b"".join(arrays))
    assert read_gguf_header(path).metadata == {"a": [0] * (1 << 21), "b": [False] * (1 << 21)}
    arrays.append(struct.pack("<Q1sIIQ", 1, b"c", 9, 1, 1) + b"\0")
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + b"".join(arrays))
    with pytest.raises(ValueError, match="metadata 'c' has an array of 1 numbers; expected at most 4,194,304 in all"):
        read_gguf_header(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04 a zip archive", "not a GGUF file: it begins with b'PK"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 77), "unknown value type 77"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1s", 1, b"\xff"), "not UTF-8"),
    ],
)
def test_foreign_files_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "foreign.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_gguf_header(path)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_gguf_header(tmp_path / "absent.gguf")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 699), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_headers_raise_value_error_or_parse(small: Path, tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    content = bytearray(small.read_bytes())
    for at, byte in damage:
        content[at] = byte
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    try:
        header = read_gguf_header(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(t.start + (t.nbytes or 0) <= len(content) for t in header.tensors.values())


def test_tensors_that_share_bytes_are_refused(small: Path, tmp_path: Path) -> None:
    """Many tensors at one place would make a large model of a small file."""
    content = bytearray(small.read_bytes())
    offset = struct.pack("<Q", 32)  # of the second tensor, 24 bytes of float32 after the first
    description = b"two" + struct.pack("<IQI", 1, 4, 1)
    place = content.index(description) + len(description)
    assert content[place : place + 8] == offset
    content[place : place + 8] = bytes(8)
    path = tmp_path / "overlapping.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"overlapping\.gguf: tensors 'one' and 'two' overlap: the second begins at"):
        read_gguf_header(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(small: Path, tmp_path: Path) -> None:
    """As one that another process truncates; a memory map of it would end the process."""
    size = small.stat().st_size
    path = tmp_path / "shrunk.gguf"
    path.write_bytes(small.read_bytes()[:100])
    with open(path, "rb") as file, pytest.raises(ValueError, match=r"shrunk\.gguf: the file shrank while it was read"):
        _Parser(path, file, size).header()
