# ruff: noqa: RUF001, RUF002 -- the regexes match characters of other scripts
r"""The pre-tokenizers of llama.cpp, by the value of `tokenizer.ggml.pre`.

A pre-tokenizer of llama.cpp is a list of regexes. Each one splits the pieces of the one before into its matches and the
text between them. llama.cpp implements some regexes by custom functions. It runs the others by `std::regex` on a text
in which each character beyond ASCII is replaced by its category. So a regex may have another meaning there than in its
tokenizer.json. The regexes here are written for `fancy-regex`, with the meaning that they have in llama.cpp:

- `\p{Lu}`, `\p{Ll}`, `\p{Lt}`, `\p{Lm}` and `\p{Lo}` are all `\p{L}` there.
- `\d` is `[0-9]`; `$` is the end of the piece, `\z`.
- Beyond ASCII, white space matches no literal character of a class: `&&\S`.
- "No letter from a to z" holds for every letter beyond ASCII, so a capital letter beyond ASCII begins no new piece.

A pattern of bpe_llama is referenced by its name. Two differences remain, both for rare characters. llama.cpp has the
tables of Unicode 15.1, bpe_llama those of `bpe_llama._core.UNICODE_VERSION`, so newer characters have no category in
llama.cpp. In the patterns `llama3` and `qwen2`, an apostrophe and `ſ` (U+017F) are a contraction, as in the published
regexes.

Source: `src/llama-vocab.cpp` (`llama_vocab::impl::load`, `llm_tokenizer_bpe`) and `src/unicode.cpp` of
https://github.com/ggml-org/llama.cpp, as llama-cpp-python 0.3.36 carries them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PreTokenizer:
    """One value of `tokenizer.ggml.pre`.

    `patterns` are applied one after another. With `ignore_merges` a piece that is a token becomes that token. `add_bos`
    is the default of `tokenizer.ggml.add_bos_token`.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_HAN_KANA = "[一-龥぀-ゟ゠-ヿ]+"
_ASCII_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_LINES = r"[^\n]+|\n+"
# All characters but sentence marks: the class of Bloom, Poro and Viking.
_NO_MARKS = r" ?[^(\s|.,!?…。，、।۔،)]+"
# Splits runs of numbers into groups of three from the right; the text before a run belongs to its first group.
_THREES = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}+"
# Letters of the scripts with two cases that DeepSeek's first tokenizer lists.
_CASED = (
    r"[A-Za-z\x{B5}À-ÖØ-öø-ƺƼ-ƿ\x{1C4}-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-\x{3F5}Ϸ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-"
    r"ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼ\x{2102}\x{2107}\x{210A}-\x{2113}"
    r"\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-"
    r"\x{213F}\x{2145}-\x{2149}ⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-"
    r"\x{FF3A}\x{FF41}-\x{FF5A}𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]"
)
# The blocks of Han that llama.cpp lists for Kimi.
_HAN = (
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
    r"\x{2B820}-\x{2CEAF}\x{2CEB0}-\x{2EBEF}\x{2F800}-\x{2FA1F}"
)


def _cased_words(letter: str, contraction: str) -> str:
    """Return the words of o200k in llama.cpp: only a capital letter of ASCII begins a new one."""
    upper, lower = rf"[{letter}&&[^a-z]]", rf"[{letter}&&[^A-Z]]"
    first = r"[^\r\n\p{L}\p{N}]?"
    return f"{first}{upper}*{lower}+{contraction}|{first}{upper}+{lower}*{contraction}"


_LLAMA3 = ("llama3",)
_QWEN2 = ("qwen2",)
_GPT2 = ("r50k",)
_SMOLLM = ("smollm",)
_DEEPSEEK_V3 = ("deepseek_v3",)
_OTHERS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT_4O = _cased_words(r"\p{L}", f"{_CONTRACTION}?") + rf"|\p{{N}}{{1,3}}|{_OTHERS_AND_SLASHES}|{_SPACES}"
_TEKKEN = _cased_words(r"\p{L}", "") + rf"|\p{{N}}|{_OTHERS_AND_SLASHES}|{_SPACES}"
_GRANITE = _cased_words(r"\p{L}\p{M}", f"{_CONTRACTION}?") + rf"|\p{{N}}{{1,3}}|{_OTHERS_AND_SLASHES}|{_SPACES}"
_TINY_AYA = (
    _THREES,
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CONTRACTION}?|\p{{N}}{{1,3}}|{_OTHERS_AND_SLASHES}|{_SPACES}",
)
_BAILING = (rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_OTHERS}|\s*[\r\n]|\s+(?!\S)|\s+",)
_YOUTU = (
    rf"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|{_HAN_KANA}",
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CONTRACTION}?|\p{{N}}|{_OTHERS_AND_SLASHES}|{_SPACES}",
)
_JAIS2 = (
    rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_OTHERS}|\s*[\r\n]+|"
    + "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s",
)
_KIMI_K2 = (
    rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}{_HAN}]?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}|{_OTHERS}|{_SPACES}",
)
_AFMOE = (
    _THREES,
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{8C48}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}"
    r"\x{2F00}-\x{2FDF}\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+",
    rf"{_ASCII_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)

DEFAULT = PreTokenizer((r"[\p{P}$+<=>^~|]+", "r50k", r"\p{N}+", "[0-9][0-9][0-9]"))
"""llama.cpp's default where a file has no `tokenizer.ggml.pre`."""

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": DEFAULT,
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), PreTokenizer(_LLAMA3)),
    **dict.fromkeys(("glm4", "glm5"), PreTokenizer(_LLAMA3, ignore_merges=True)),
    **dict.fromkeys(
        (
            *("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"),
            *("modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe", "exaone4"),
            *("mpt", "olmo", "jais", "trillion", "granite-docling"),
        ),
        PreTokenizer(_GPT2),
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        PreTokenizer(_SMOLLM),
    ),
    **dict.fromkeys(
        (
            *("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open"),
            "grok-2",
        ),
        PreTokenizer(_QWEN2),
    ),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), PreTokenizer(_DEEPSEEK_V3)),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), PreTokenizer((_GPT_4O,))),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), PreTokenizer(_TINY_AYA)),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), PreTokenizer(_BAILING)),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), PreTokenizer((_NO_MARKS,))),
    "viking": PreTokenizer((_NO_MARKS, r"\p{N}")),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "granite-embed-multi-97m": PreTokenizer((_GRANITE,), ignore_merges=True),
    "falcon": PreTokenizer((r"[\p{P}$+<=>^~|`]+", "r50k", "[0-9][0-9][0-9]")),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?{_CASED}+",
            r"\s?[!-/:-~！-／：-～‘-‟、。]+",
            r"\s+\z",
            r"[[一-龥ࠀ-一가-퟿]&&\S]+",
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[[一-龥ࠀ-一가-퟿]&&\S]+", r"\p{N}")),
    "spark2_5": PreTokenizer(
        (
            r"\p{N}{1,3}",
            _HAN_KANA,
            rf"{_ASCII_WORD}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        )
    ),
    "youtu": PreTokenizer(_YOUTU, ignore_merges=True),
    "jais-2": PreTokenizer(_JAIS2),
    "qwen35": PreTokenizer(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
        )
    ),
    "chameleon": PreTokenizer(
        (
            *("<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]"),
            "r50k",
        ),
        add_bos=True,
    ),
    "kimi-k2": PreTokenizer(_KIMI_K2),
    "superbpe": PreTokenizer((r"\p{N}+", "(?=(?:[0-9]{3})+(?![0-9]))")),
    "seed-coder": PreTokenizer(
        (rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
    ),
    "ufakzeka": PreTokenizer((rf"{_WORD}|\p{{N}}|{_OTHERS}|{_SPACES}",)),
    "afmoe": PreTokenizer(_AFMOE),
    "laguna": PreTokenizer((_LINES, "qwen2")),
    "exaone-moe": PreTokenizer(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "minicpm5": PreTokenizer(
        (r"\p{N}{1,3}", rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_OTHERS}|{_SPACES}"), ignore_merges=True
    ),
}
"""All byte-level pre-tokenizers of llama.cpp by name. Of several synonyms, the first is written to files."""

CHARACTER_NAMES = ("gemma4", "granite-embed-multi-311m", "sarvam-moe")
"""Names of pre-tokenizers for vocabularies over characters, with `▁` for a space and bytes for unknown characters."""

NEAREST = {
    "smollm_digits": ("smollm", ""),
    "o200k": ("gpt-4o", "a capital letter beyond ASCII does not begin a new piece"),
    "cl100k": ("dbrx", "white space that ends a text is more than one piece if a line ends in it"),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ): ("tekken", "a capital letter beyond ASCII does not begin a new piece"),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
    ): ("qwen35", ""),
}
"""Published patterns with another spelling in llama.cpp: its name, and the difference for a warning, if any."""
