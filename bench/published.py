"""The patterns and special tokens of published vocabularies, as their authors define them.

Sources: tiktoken's ``openai_public.py``; ``llama_models/llama3/tokenizer.py``; Qwen's ``tokenization_qwen.py``.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import data

if TYPE_CHECKING:
    import tiktoken

_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_R50K = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTION,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTION,
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


@dataclass(frozen=True)
class Published:
    """A vocabulary: our name for its pattern, the pattern itself, and its special tokens."""

    pattern: str
    regex: str
    special_tokens: dict[str, int]

    @property
    def path(self) -> Path:
        """Return the path of its file, which is fetched if missing."""
        return data.vocabulary(next(name for name, known in PUBLISHED.items() if known is self))

    def ranks(self) -> dict[bytes, int]:
        """Return its token bytes and their ids."""
        pairs = (line.split() for line in self.path.read_bytes().splitlines() if line)
        return {base64.b64decode(token): int(rank) for token, rank in pairs}

    def as_tiktoken(self) -> tiktoken.Encoding:
        """Return it as tiktoken's class."""
        import tiktoken

        return tiktoken.Encoding(
            self.pattern, pat_str=self.regex, mergeable_ranks=self.ranks(), special_tokens=self.special_tokens
        )


_FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
PUBLISHED = {
    "r50k": Published("r50k", _R50K, {"<|endoftext|>": 50256}),
    "p50k": Published("r50k", _R50K, {"<|endoftext|>": 50256}),
    "cl100k": Published("cl100k", _CL100K, {"<|endoftext|>": 100257, **_FIM, "<|endofprompt|>": 100276}),
    "o200k": Published("o200k", _O200K, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    "llama3": Published(
        "llama3",
        _LLAMA3,
        {
            "<|begin_of_text|>": 128000,
            "<|end_of_text|>": 128001,
            "<|start_header_id|>": 128006,
            "<|end_header_id|>": 128007,
            "<|eot_id|>": 128009,
        },
    ),
    "qwen2": Published("qwen2", _QWEN, {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}),
}


def first_difference(ours: list[int], theirs: list[int]) -> str:
    """Return the first difference of two id lists, as a short message."""
    if ours == theirs:
        return "equal"
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return f"ids differ at {at} of {len(ours)} and {len(theirs)}: {ours[at : at + 5]} against {theirs[at : at + 5]}"
