"""Texts on which a tokenizer may be slow or wrong."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable


def adversarial(size: int = 1_000_000) -> dict[str, str]:
    """Return adversarial texts for tokenizers, by name; the long ones have about ``size`` characters.

    The same on every call and machine. ``lone_surrogates`` cannot be written as UTF-8; all others can.
    """
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    encoded = base64.b64encode(draw.randbytes(size * 3 // 4)).decode()
    texts: dict[str, Callable[[], str]] = {
        "empty": lambda: "",
        "one_letter": lambda: "a" * size,
        "carets": lambda: "^" * (size // 10),
        "spaces": lambda: " " * size,
        "newlines": lambda: "\n" * (size // 10),
        "mixed_whitespace": lambda: "".join(draw.choices(" \t\n\r\x0b\x0c\x85\xa0\u2003\u3000", k=size // 10)),
        "spaces_then_word": lambda: (" " * 997 + "x") * (size // 998 // 10 + 1),
        "digits": lambda: "1234567890" * (size // 100),
        "random_bytes_latin1": lambda: draw.randbytes(size // 10).decode("latin-1"),
        "random_bytes_replaced": lambda: draw.randbytes(size // 10).decode("utf-8", "replace"),
        "random_letters": lambda: "".join(draw.choices(letters, k=size)),
        "random_case": lambda: "".join(draw.choices(letters + letters.upper() + "'", k=size // 10)),
        "base64": lambda: encoded,
        "base64_lines": lambda: "\n".join(encoded[i : i + 76] for i in range(0, len(encoded) // 10, 76)),
        "emoji_zwj": lambda: "👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇯🇵🧑🏿‍🚀❤️‍🔥" * (size // 1000),
        "combining_marks": lambda: ("e" + "\u0301\u0323\u0308" * 20 + " ") * (size // 1000),
        "lone_surrogates": lambda: "a\ud800b \udfff\ud83d\ude00 \ude00\ud83d \udc00'\ud834s",
        "every_code_point": lambda: "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000),
        "every_code_point_spaced": lambda: " ".join(
            chr(c) + "a" for c in range(0, 0x110000, 7) if not 0xD800 <= c < 0xE000
        ),
        "contractions": lambda: "I'm you're he'LL we'Ve 'S'D ſ's 'ſ 'K'k it''s 'tis ' s'\u0130 D'D'd' " * 20,
        "special_looking": lambda: "<|endoftext|> <|begin_of_text|><|im_start|>user\n<|endof text|> </s> <s>[INST]",
        "nul_and_controls": lambda: "".join(map(chr, range(32))) * 8 + "\x7f\x80\x9f\ufeff\ufffe\uffff",
    }
    return {name: make() for name, make in texts.items()}
