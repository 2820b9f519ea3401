"""Seams: places where a text can be cut in two so that its ids are those of the two halves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from bpe_llama._core import Tokenizer as CoreTokenizer

# Each of these patterns ends a pre-token between a letter or number and white space or punctuation, and between ASCII
# punctuation and a space, whatever stands around the two characters. An apostrophe is no seam: o200k has contractions.
_PATTERNS = frozenset({"r50k", "cl100k", "llama3", "o200k", "qwen2", "deepseek_v3", "smollm", "smollm_digits"})
_ENDS = r" \n\r\t.,;:!?()\[\]{}<>=+*/\"\uff0c\u3002\u3001\uff1b\uff1a\uff01\uff1f\uff08\uff09\u300c\u300d"
_WINDOW = 1 << 20  # Characters that are searched at once: a search in `re` cannot be interrupted.
_SEAM = re.compile(rf"(?<=[^\W_])(?=[{_ENDS}])|(?<=[!-/:-@\[-`{{-~])(?= )")


def has_seams(tokenizer: CoreTokenizer) -> bool:
    """Return whether the ids of a text are those of its parts between seams.

    They are not where text is changed before it is split, where added tokens are always found in text, and where the
    pattern is none of the published ones.
    """
    if tokenizer.pipeline != "fast" or tokenizer.pattern_name not in _PATTERNS:
        return False
    if tokenizer.added_tokens.keys() != tokenizer.special_tokens.keys():
        return False
    components = json.loads(tokenizer.components_json() or "{}")
    # NFC changes nothing across a seam: no character before it composes with one that follows.
    is_local = components.get("normalizer") in (None, {"type": "NFC"})
    return is_local and '"add_prefix_space": true' not in json.dumps(components.get("pre_tokenizer"))


def seams(text: str, start: int = 0) -> Iterator[int]:
    """Yield the seams of a text from a place on.

    For any ``i <= seam <= k``, the ids of ``text[i:k]`` are those of ``text[i:seam]`` and of ``text[seam:k]``.

    >>> list(seams("one, two (three)"))
    [3, 4, 8, 15]
    """
    for begin in range(start, len(text), _WINDOW):
        # A seam lies before a character of the window, and `re` sees the one before `begin`, too.
        for match in _SEAM.finditer(text, begin, begin + _WINDOW):
            yield match.start()
