"""Tokenizers in GGUF files give the ids that llama.cpp gives, for the vocabularies that it tests itself with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from bench import data
from bpe_llama import Tokenizer
from bpe_llama._gguf.header import read_gguf_header
from bpe_llama._gguf.reader import GgufTokenizer, read_tokenizer
from bpe_llama._gguf.writer import tokenizer_metadata
from tests.gguf_files import write_gguf

NAMES = (
    *("command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt"),
    *("phi-3", "qwen2", "qwen35", "refact", "starcoder"),
)
# What `llama_vocab` of llama-cpp-python 0.3.36 says of each: bos, eos, add_bos, add_eos, pad, and every end.
SPECIAL = {
    "command-r": (5, 255001, True, False, 0, [0, 255001]),
    "deepseek-coder": (32013, 32014, True, False, 32014, [32014]),
    "deepseek-llm": (100000, 100001, True, False, 100001, [100001]),
    "falcon": (11, 11, False, False, None, [11]),
    "gemma-4": (2, 1, True, False, 0, [1, 50, 106]),
    "gpt-2": (50256, 50256, False, False, None, [50256]),
    "llama-bpe": (128000, 128001, True, False, None, [128001, 128009]),
    "llama-spm": (1, 2, True, False, None, [2]),
    "mpt": (0, 0, False, False, None, [0]),
    "phi-3": (1, 32000, True, False, 32000, [2, 32000, 32007]),
    "qwen2": (151643, 151643, False, False, 151643, [128247, 151643, 151645]),
    "qwen35": (151643, 151643, False, False, 151643, [128247, 151643, 151645]),
    "refact": (0, 0, False, False, None, [0, 4, 18]),
    "starcoder": (0, 0, False, False, None, [0, 4]),
}


def load(path: Path) -> GgufTokenizer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the special tokens '>>TITLE<<' and")  # falcon's
        return read_tokenizer(path)


def cases(path: Path) -> list[tuple[str, list[int]]]:
    """Return texts and their ids by llama.cpp, without special tokens."""
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    return [(text, [int(number) for number in line.split()]) for text, line in zip(texts, lines, strict=False)]


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest, real: Callable[..., Any]) -> tuple[str, Path, GgufTokenizer]:
    """Return the name of a vocabulary, its file and what we read from it."""
    path = real(data.llama_cpp_vocabulary, request.param)
    return request.param, path, load(path)


def test_ids_are_llama_cpps(loaded: tuple[str, Path, GgufTokenizer]) -> None:
    _, path, found = loaded
    compared = cases(path)
    assert len(compared) >= 40
    for text, ids in compared:
        assert found.core.encode(text) == ids, text


def test_special_tokens_are_llama_cpps(loaded: tuple[str, Path, GgufTokenizer]) -> None:
    name, _, found = loaded
    ends = (
        found.core.bos_id,
        found.core.eos_id,
        found.add_bos,
        found.add_eos,
        found.core.pad_id,
        sorted(found.end_ids),
    )
    assert ends == SPECIAL[name]


def test_what_we_write_gives_the_same_ids(loaded: tuple[str, Path, GgufTokenizer], tmp_path: Path) -> None:
    name, path, first = loaded
    with warnings.catch_warnings():
        if name == "phi-3":  # llama.cpp knows by the model's name that white space after its tokens is swallowed
            warnings.filterwarnings("ignore", message=r"llama\.cpp encodes some texts differently")
        metadata = tokenizer_metadata(first.core, add_bos=first.add_bos, add_eos=first.add_eos, pre=first.pre)
    write_gguf(tmp_path / "t.gguf", metadata)
    second = load(tmp_path / "t.gguf")
    for text, ids in cases(path):
        assert second.core.encode(text) == ids, text
    assert second.core.merges == first.core.merges
    assert (second.pre, second.add_bos, second.add_eos, second.core.pad_id, second.end_ids) == (
        *(first.pre, first.add_bos, first.add_eos, first.core.pad_id, first.end_ids),
    )
    stated = read_gguf_header(path).metadata
    assert metadata["tokenizer.ggml.model"] == stated["tokenizer.ggml.model"]
    assert metadata["tokenizer.ggml.pre"] == stated.get("tokenizer.ggml.pre", "gemma4")
    assert metadata["tokenizer.ggml.tokens"] == stated["tokenizer.ggml.tokens"]


def test_a_sentencepiece_model_goes_through_gguf(real: Callable[..., Any], tmp_path: Path) -> None:
    path = real(data.vocabulary, "mistral")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    core = Tokenizer.from_file(path)
    write_gguf(tmp_path / "t.gguf", tokenizer_metadata(core.with_ends(1, 2, None, 0), add_bos=True))
    found = read_tokenizer(tmp_path / "t.gguf")
    assert (found.core.bos_id, found.core.eos_id, found.core.unk_id, found.add_bos) == (1, 2, 0, True)
    assert found.core.merges == core.merges
    for text, _ in cases(real(data.llama_cpp_vocabulary, "llama-spm")):
        assert found.core.encode(text) == theirs.encode(text), text
    # Its user-defined pieces: SentencePiece puts no space after them, llama.cpp does.
    with pytest.raises(ValueError, match=r"llama\.cpp cannot split text as this SentencePiece tokenizer does"):
        tokenizer_metadata(Tokenizer.from_file(real(data.vocabulary, "mistral_v3")))


@pytest.mark.parametrize("name", ["aquila", "gpt-neox"])
def test_a_vocabulary_without_pre_warns(real: Callable[..., Any], name: str) -> None:
    path = real(data.llama_cpp_vocabulary, name)
    with pytest.warns(UserWarning, match=r"tokenizer\.ggml\.pre is missing"):
        core = read_tokenizer(path).core
    # llama-cpp-python 0.3.36 gives these ids.
    assert core.encode("Hello, world! 1234567\n\n  x == 3.14") == WITHOUT_PRE[name]


WITHOUT_PRE = {
    "aquila": [22299, 12, 3117, 1, 221, 11218, 31441, 23, 3626, 2599, 221, 562, 221, 19, 14, 1556],
    "gpt-neox": [12092, 13, 1533, 2, 209, 10683, 25133, 24, 535, 50276, 89, 209, 381, 209, 20, 15, 1047],
}
