"""Published vocabularies in the format of `.tiktoken` files: where each comes from, its pattern and special tokens.

Sources: tiktoken_ext/openai_public.py of tiktoken 0.14, llama_models/llama3/tokenizer.py and llama4/tokenizer.py of
llama-models 0.3.0, dashscope/tokenizers/qwen_tokenizer.py of dashscope 2.0.2.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bpe_llama._arguments import string
from bpe_llama._core import pattern_regex, shown
from bpe_llama._loading.published.model_names import MODELS, vocabulary_of_model


@dataclass(frozen=True)
class Published:
    """A published vocabulary.

    Attributes:
        file: Its place in our cache. Other caches know it by ``url`` and ``sha256``.
        sha256: The SHA-256 of the file.
        pattern: Our name for its pattern.
        special_tokens: Special tokens to id.
        url: Where anyone may download it, or ``None``.
        hub: Its place on the Hugging Face Hub, if it has one: repository, revision and file.
        source: Without ``url``: how to get it.
        spelling: The author's regex, where it is not the one that `bpe_llama._core.pattern_regex` returns.
        normalizes: Whether its authors put text into normal form C before they encode it.
    """

    file: str
    sha256: str
    pattern: str
    special_tokens: dict[str, int]
    url: str | None = None
    hub: tuple[str, str, str] | None = None
    source: str = ""
    spelling: str | None = None
    normalizes: bool = False

    @property
    def regex(self) -> str:
        """The pattern as the authors spell it."""
        return self.spelling or pattern_regex(self.pattern)


def _numbered(first: int, names: list[str]) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(names)}


def _reserved(kind: str, first: int, last: int) -> list[str]:
    return [f"<|{kind}reserved_special_token_{i}|>" for i in range(first, last + 1)]


_LLAMA3 = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>"),
]

_LLAMA4 = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"),
    *_reserved("text_post_train_", 0, 5),
    *("<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"),
    *_reserved("text_post_train_", 8, 68),
    *("<|image_start|>", "<|image_end|>", *_reserved("vision_", 0, 1), "<|tile_x_separator|>", "<|tile_y_separator|>"),
    *(*_reserved("vision_", 2, 5), "<|image|>", *_reserved("vision_", 6, 6), "<|patch|>"),
    *_reserved("vision_", 7, 1047),
    *(*_reserved("reasoning_", 0, 7), "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"),
]

# The tokens of o200k_harmony between those of o200k_base and the reserved ones.
_HARMONY = {
    **{"<|startoftext|>": 199998, "<|endoftext|>": 199999, "<|return|>": 200002, "<|constrain|>": 200003},
    **{"<|channel|>": 200005, "<|start|>": 200006, "<|end|>": 200007, "<|message|>": 200008, "<|call|>": 200012},
}

_OPENAI = "https://openaipublic.blob.core.windows.net/encodings/"
_META = "It is llama_models/{}/tokenizer.model in the package llama-models 0.3.0 of PyPI, and in Meta's repositories"

_R50K = Published(
    "tiktoken/0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4",  # SHA-1 of the URL, as in tiktoken's own cache
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "r50k",
    {"<|endoftext|>": 50256},
    _OPENAI + "r50k_base.tiktoken",
    spelling=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
)
_P50K = replace(
    _R50K,
    file="tiktoken/ec7223a39ce59f226a68acc30dc1af2788490e15",
    sha256="94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    url=_OPENAI + "p50k_base.tiktoken",
)
_O200K = Published(
    "tiktoken/fb374d419588a4632f3f557e76b4b70aebbca790",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "o200k",
    {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    _OPENAI + "o200k_base.tiktoken",
)
_QWEN = Published(
    "qwen/qwen.tiktoken",
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    "qwen2",
    _numbered(151643, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]),
    "https://huggingface.co/Qwen/Qwen-72B/resolve/b8e18ac61df64d35308695769ff46b976b6a00f4/qwen.tiktoken",
    ("Qwen/Qwen-72B", "b8e18ac61df64d35308695769ff46b976b6a00f4", "qwen.tiktoken"),
    normalizes=True,
)

# By name. Of several with one file, the first describes a file that is recognized by its SHA-256.
PUBLISHED = {
    "gpt2": _R50K,
    "r50k_base": _R50K,
    "p50k_base": _P50K,
    "p50k_edit": replace(
        _P50K,
        special_tokens={"<|endoftext|>": 50256}
        | _numbered(50281, ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]),
    ),
    "cl100k_base": Published(
        "tiktoken/9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        "cl100k",
        _numbered(100257, ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"])
        | {"<|endofprompt|>": 100276},
        _OPENAI + "cl100k_base.tiktoken",
        spelling=r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    ),
    "o200k_base": _O200K,
    "o200k_harmony": replace(
        _O200K,
        special_tokens=_O200K.special_tokens
        | _HARMONY
        | {f"<|reserved_{i}|>": i for i in (200000, 200001, 200004, 200009, 200010, 200011, *range(200013, 201088))},
    ),
    "llama3": Published(
        "llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        "llama3",
        _numbered(128000, [*_LLAMA3, *(f"<|reserved_special_token_{i}|>" for i in range(2, 258 - len(_LLAMA3)))]),
        hub=("meta-llama/Llama-3.1-8B", "main", "original/tokenizer.model"),
        source=_META.format("llama3"),
    ),
    "llama4": Published(
        "llama4/tokenizer.model",
        "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed",
        "o200k",
        _numbered(200000, [*_LLAMA4, *_reserved("", 0, 2047 - len(_LLAMA4))]),
        source=_META.format("llama4"),
    ),
    "qwen": _QWEN,
    "qwen2": replace(_QWEN, special_tokens=_numbered(151643, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])),
}


def published_by_sha256(sha256: str) -> Published | None:
    """Return the vocabulary of the file with this SHA-256, if one is known."""
    return next((known for known in PUBLISHED.values() if known.sha256 == sha256), None)


def published_by_name(name: str) -> Published:
    """Return the vocabulary of this name, or of the OpenAI model of this name.

    Raises:
        ValueError: If neither is known; the message lists the nearest names.
    """
    string("name", name)
    found = PUBLISHED.get(name) or PUBLISHED.get(vocabulary_of_model(name) or "")
    if found is None:
        raise ValueError(f"no vocabulary or model is called {shown(name)}{nearest(name, [*PUBLISHED, *MODELS])}")
    return found


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown name: the known names most like it, or all."""
    alike = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if alike:
        return f"; did you mean {' or '.join(map(repr, alike))}?"
    return f"; known are {', '.join(known)}"
