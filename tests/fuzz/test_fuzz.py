"""Random input for what only Python reads: files of any kind, JSON beside them, GGUF headers, text that is no UTF-8.

What Rust reads is fuzzed by the targets under ``rust/fuzz``. Ordinary test runs replay the inputs under
``regressions/TARGET/`` and try a fixed few hundred mutations. ``make fuzz-all`` lets atheris find new inputs
(`guided`), and any that breaks a promise is kept as a new regression to commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from bpe_llama import Tokenizer
from bpe_llama._gguf.token_types import CONTROL, USER_DEFINED
from tests.fuzz.model_targets import TARGETS as MODEL_TARGETS
from tests.fuzz.structure import GGUF, STRUCTURES, restructured
from tests.unit.loading.gguf_metadata import byte_level, characters, sentencepiece

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of ids that transformers ignores, too
REGRESSIONS = Path(__file__).parent / "regressions"
DOCUMENTED = (ValueError, KeyError, OSError)
ORDINARY_TRIES = 200
MAX_SIZE = 4096

_TOKENIZER = Tokenizer.from_ranks(
    {**{bytes([b]): b for b in range(256)}, b"th": 256, b"the": 257, b"  ": 258, b"\xc3\xa9": 259, b"ab": 260},
    pattern="cl100k",
    special_tokens={"<|end|>": 261, "<|end|>x": 262},
)


def _text(block: bytes, folder: Path) -> None:
    text = block.decode("utf-8", "surrogatepass" if block[:1] == b"\xed" else "surrogateescape")
    replaced = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    ids, offsets = _TOKENIZER.encode_with_offsets(replaced)
    assert len(ids) == len(offsets) == _TOKENIZER.count(replaced)
    assert all(0 <= start < end <= len(replaced) for start, end in offsets)
    assert replaced.startswith(_TOKENIZER.truncate(replaced, max_tokens=len(ids) // 2))
    assert _TOKENIZER.decode(_TOKENIZER.encode(replaced, allowed_special="all")) == replaced
    # tiktoken's way with lone surrogates: by way of UTF-16, so that pairs become characters again.
    assert _TOKENIZER.encode(text) == _TOKENIZER.encode(
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def _token_files(block: bytes, folder: Path) -> None:
    """The three files that name tokens, with a line of hyphens between."""
    parts = [*block.split(b"\n---\n"), b"{}", b"{}"][:3]
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    _use(folder, {"vocab.json": _VOCAB, "merges.txt": b"a b\n", **dict(zip(names, parts, strict=True))})


def _loads(
    name: str, before: dict[str, bytes] | None = None, after: dict[str, bytes] | None = None
) -> Callable[[bytes, Path], None]:
    """Return a target whose input is the file ``name``, with others before and after it."""
    return lambda block, folder: _use(folder, {**(before or {}), name: block, **(after or {})})


def _use(folder: Path, files: dict[str, bytes]) -> None:
    """Load the first of the files, which gives text back but for bytes that are no tokens."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    tokenizer = Tokenizer.from_file(folder / next(iter(files)))
    text = "the thing, 12 é"
    lacks = any(tokenizer.token_to_id(bytes([byte])) is None for byte in text.encode())
    assert lacks or tokenizer.decode(tokenizer.encode(text)) == text


def _any_file(block: bytes, folder: Path) -> None:
    """A file of whatever format; a tokenizer.json that `tokenizers` reads too gives its ids and its text."""
    (folder / "tokenizer.model").write_bytes(block)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.model")
    try:
        theirs = tokenizers.Tokenizer.from_str(block.decode())
    except Exception:  # another format; or theirs wants a field that has a default here
        return
    theirs.no_truncation()
    theirs.no_padding()
    for text in ("the thing, 12 é", "I'm <|end|> x\n\t 日本 <s>▁a e\u0301 0123"):
        ids = tokenizer.encode(text, allowed_special="all")
        assert ids == theirs.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTE_CHARACTERS = _PRINTABLE + [256 + i for i in range(256 - len(_PRINTABLE))]
_LINES = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))
with tempfile.TemporaryDirectory() as _folder:
    _TOKENIZER.save(Path(_folder) / "tokenizer.json")
    _JSON = (Path(_folder) / "tokenizer.json").read_bytes()
    _TOKENIZER.save(Path(_folder) / "vocab.tiktoken")
    _SIDECAR = json.loads((Path(_folder) / "vocab.tiktoken.json").read_bytes())
    del _SIDECAR["sha256"]  # of another vocabulary than that of the target
_VOCAB = json.dumps({chr(c): i for i, c in enumerate(_BYTE_CHARACTERS)} | {"ab": 256}).encode()
_TEKKEN_CONFIG = {"pattern": r"\w+|\W", "num_vocab_tokens": 256, "default_vocab_size": 278, "version": "v3"}
_TEKKEN = json.dumps(
    {
        "config": _TEKKEN_CONFIG | {"default_num_special_tokens": 22},
        "vocab": [
            {"rank": b, "token_bytes": base64.b64encode(bytes([b])).decode(), "token_str": None} for b in range(256)
        ],
        "special_tokens": [{"rank": 0, "token_str": "<s>", "is_control": True}],
    }
).encode()
_TOKEN_FILES = b"""{"tokenizer_class": "Qwen2Tokenizer", "bos_token": {"__type": "AddedToken", "content": "<s>"},
"extra_special_tokens": ["x"]}
---
{"eos_token": {"content": "<e>", "lstrip": true}, "additional_special_tokens": ["<a>"]}
---
{"<a>": 300, "the": 301}"""
_GGUF_KEYS = {
    "general.architecture": "llama",
    "general.alignment": 32,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.chat_template": "{{ messages }}",
}
_CONTROLS = {"<|im_end|>": (0.0, CONTROL), "<|fim_pad|>": (0.0, CONTROL), "[x]": (0.0, USER_DEFINED)}
_GGUF, *_GGUFS = (
    GGUF.write({"version": 3, "metadata": metadata | _GGUF_KEYS, "tensors": tensors})
    for metadata, tensors in (
        ({}, [["a", [2, 32], 2, 0], ["b", [3], 0, 0]]),
        (byte_level(bos_token_id=260, eot_token_id=260), []),
        (sentencepiece(_CONTROLS, add_space_prefix=True, eom_token_id=259), []),
        (characters(_CONTROLS, add_eos_token=True), []),
    )
)

TARGETS: dict[str, tuple[Callable[[bytes, Path], None], list[bytes]]] = {
    "python_text": (
        _text,
        [
            "the the  ab é<|end|>x 123\r\n\t".encode(),
            "I'm 'LL ſ\u0301 日本語 👩‍👩‍👧‍👦".encode(),
            "\ud83d\ude00 \ud800a\udfff".encode("utf-8", "surrogatepass"),
        ],
    ),
    "python_any_file": (_any_file, [_JSON, _LINES, _GGUF]),
    "python_gguf": (lambda block, folder: _use(folder, {"model.gguf": b"GGUF" + block[4:]}), [*_GGUFS, _GGUF]),
    "python_config": (
        _loads("tokenizer_config.json", {"tokenizer.json": _JSON}),
        [b'{"bos_token": {"content": "<|end|>"}, "eos_token": "x", "chat_template": "{{ 1 }}"}'],
    ),
    "python_sidecar": (_loads("vocab.tiktoken.json", {"vocab.tiktoken": _LINES}), [json.dumps(_SIDECAR).encode()]),
    "python_tekken": (_loads("tekken.json"), [_TEKKEN]),
    "python_vocab": (_loads("vocab.json", after={"merges.txt": b""}), [_VOCAB]),
    "python_merges": (_loads("merges.txt", after={"vocab.json": _VOCAB}), [b"#version: 0.2\na b\n"]),
    "python_token_files": (_token_files, [_TOKEN_FILES]),
    **MODEL_TARGETS,
}
_REFUSED = {"python_any_file": (1, 2), "python_chats": (2,), "python_gguf": (3,)}
"""Of a target, the seeds that are refused as they stand: mutations and crossings use their parts."""
_TRIES = {"python_request": 40}  # each generates text
_NUMBERS = [b"\x00", b"\xff", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff" * 8]
_NUMBERS += [b"-1", b"4294967296", b"1e9"]


def mutate(block: bytes, other: bytes, draw: random.Random) -> bytes:
    """Return ``block`` with one to four small wounds: cut, spliced, flipped, repeated or overwritten."""
    for _ in range(draw.randint(1, 4)):
        start, end = sorted(draw.choices(range(len(block) + 1), k=2))
        part = block[start:end]
        replacement = draw.choice(
            [
                b"",
                draw.randbytes(min(len(part), 8)),
                bytes(byte ^ 1 << draw.randrange(8) for byte in part[:2]) + part[2:],
                part * 2,
                draw.choice(_NUMBERS),
                other[start:end],
            ]
        )
        keep = end if draw.random() < 0.5 else min(len(block), start + len(replacement))
        block = (block[:start] + replacement + block[keep:])[: 100 * MAX_SIZE]
    return block


def hold(target: str, block: bytes, folder: Path) -> None:
    """Run one input; what breaks a promise is kept as a regression and raised again."""
    try:
        TARGETS[target][0](block, folder)
    except DOCUMENTED:
        pass
    except BaseException as error:  # a Rust panic is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        kept = REGRESSIONS / target / f"{hashlib.sha256(block).hexdigest()[:16]}.bin"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(block)
        raise AssertionError(f"{type(error).__name__}: {error}; the input is kept as {kept}") from error


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_mutated_input(target: str, tmp_path: Path) -> None:
    draw = random.Random(0)
    run, seeds = TARGETS[target]
    for number, seed in enumerate(seeds):
        hold(target, seed, tmp_path)
        if number not in _REFUSED.get(target, ()):
            run(seed, tmp_path)  # it loads: the mutations begin at something sound
    for _ in range(_TRIES.get(target, ORDINARY_TRIES)):
        seed, block = draw.choice(seeds), None
        if target in STRUCTURES and draw.random() < 0.5:
            block = restructured(seed, STRUCTURES[target], draw)
        hold(target, mutate(seed, draw.choice(seeds), draw) if block is None else block, tmp_path)


@pytest.mark.parametrize(
    "path", sorted(REGRESSIONS.glob("python_*/*")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_regression(path: Path, tmp_path: Path) -> None:
    hold(path.parent.name, path.read_bytes(), tmp_path)
