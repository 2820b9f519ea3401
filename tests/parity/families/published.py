"""Tokenizers as the publishers of model families configure them, with small vocabularies trained on the spot."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bench.published import PUBLISHED

N, P, D, X = normalizers, pre_tokenizers, decoders, processors
LLAMA3, O200K, QWEN2 = (PUBLISHED[name].regex for name in ("llama3", "o200k", "qwen2"))
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
]
KIMI = (
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [
    *("the", "The", "don't", "WE'LL", "ab", "CAFÉ", "café", "e\u0301", "naïve", "ﬁne", "ſo"),
    *("日本語", "テスト", "中文字", "한국어", "1", "12345", "٣٤", "Ⅷ", "...", "?!", "(a|b)", "#$%", "x_y"),
    *("😀", "👩‍👩‍👧", " ", "  ", "   ", "\n", "\r\n", "\t", "\n\n", "\u00a0", "\u3000", "\u200d"),
    *("▁", "▁the", "Ġ", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<mask>", "<0x41>", "।", "ไทย"),
]


def split(*regexes: str) -> Any:
    """Return splits by regexes and the byte alphabet."""
    steps = [P.Split(Regex(regex), behavior="isolated") for regex in regexes]
    return P.Sequence([*steps, P.ByteLevel(add_prefix_space=False, use_regex=False)])


def template(single: str, pair: str, *names: str) -> Callable[[Tokenizer], Any]:
    return lambda made: X.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, made.token_to_id(name)) for name in names]
    )


def begins_with(name: str) -> Callable[[Tokenizer], Any]:
    return template(f"{name} $A", f"{name} $A {name}:1 $B:1", name)


def between(begin: str, end: str, *flags: bool) -> Callable[[Tokenizer], Any]:
    return lambda made: X.RobertaProcessing((end, made.token_to_id(end)), (begin, made.token_to_id(begin)), *flags)


def named(**tokens: str | None) -> dict[str, str | None]:
    """Return the fields of a tokenizer_config.json: ``eos="</s>"`` names the ``eos_token``."""
    return {f"{role}_token": token for role, token in tokens.items()}


def llama2_layout(normalized: bool) -> dict[str, Any]:
    return {
        "normalizer": N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]),
        "decoder": D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)]),
        "model": {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"},
        "first": ["<unk>", "<s>", "</s>", *BYTES],
        "added": [AddedToken(name, normalized=normalized, special=True) for name in ("<unk>", "<s>", "</s>")],
        "post": begins_with("<s>"),
        "config": named(bos="<s>", eos="</s>", unk="<unk>", pad=None),
    }


GPT2 = {
    "pre": P.ByteLevel(add_prefix_space=False),
    "last": ["<|endoftext|>"],
    "config": named(eos="<|endoftext|>", bos="<|endoftext|>"),
}
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDS_BOS = {"add_bos_token": True, "add_eos_token": False}
DIGITS = P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=False)])
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "post": lambda _: X.ByteLevel(trim_offsets=False)},
    "roberta": {
        "pre": P.ByteLevel(add_prefix_space=False),
        "first": ["<s>", "<pad>", "</s>", "<unk>"],
        "added": [AddedToken("<mask>", lstrip=True, special=True)],
        "post": between("<s>", "</s>", True, False),
        "config": named(bos="<s>", eos="</s>", sep="</s>", cls="<s>", pad="<pad>", unk="<unk>", mask="<mask>"),
    },
    "bart, prefix space": {
        "pre": P.ByteLevel(add_prefix_space=True),
        "first": ["<s>", "<pad>", "</s>", "<unk>"],
        "post": between("<s>", "</s>", True, False),
        "config": named(bos="<s>", eos="</s>", pad="<pad>"),
    },
    "llama 2, older": llama2_layout(True),
    "llama 2": llama2_layout(False),
    "mistral, metaspace": {
        **llama2_layout(False),
        "normalizer": None,
        "pre": P.Metaspace("▁", prepend_scheme="first", split=False),
    },
    "llama 3": {
        "pre": split(LLAMA3),
        "model": {"ignore_merges": True},
        "last": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        "post": lambda made: X.Sequence([X.ByteLevel(trim_offsets=True), begins_with("<|begin_of_text|>")(made)]),
        "config": named(bos="<|begin_of_text|>", eos="<|eot_id|>"),
    },
    "llama 4, gpt-oss": {
        "pre": split(O200K),
        "last": ["<|startoftext|>", "<|endoftext|>", "<|return|>"],
        "config": named(bos="<|startoftext|>", eos="<|return|>", pad="<|endoftext|>"),
    },
    "qwen 2, qwen 3": {
        "normalizer": N.NFC(),
        "pre": split(QWEN2),
        "last": CHATML,
        "added": [AddedToken(name, special=False, normalized=False) for name in ("<tool_call>", "<think>")],
        "config": named(bos=None, eos="<|im_end|>", pad="<|endoftext|>"),
    },
    "qwen 3.5": {"normalizer": N.NFC(), "pre": split(QWEN35), "last": CHATML, "config": named(eos="<|im_end|>")},
    "deepseek v3": {
        "pre": split(*DEEPSEEK),
        "first": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"],
        "post": begins_with("<｜begin▁of▁sentence｜>"),
        "config": named(bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>") | ADDS_BOS,
    },
    "falcon": {
        "pre": P.Sequence(
            [
                P.Punctuation("contiguous"),
                P.ByteLevel(add_prefix_space=False),
                P.Digits(individual_digits=False),
                P.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        ),
        "first": [">>TITLE<<", "<|endoftext|>"],
        "config": named(eos="<|endoftext|>"),
    },
    "starcoder": {
        "pre": DIGITS,
        "first": ["<|endoftext|>", "<fim_prefix>"],
        "config": named(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>"),
    },
    "smollm 2": {
        "pre": DIGITS,
        "first": CHATML,
        "config": named(bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>"),
    },
    "smollm 3": {
        "pre": split(LLAMA3),
        "last": ["<|begin_of_text|>", "<|im_end|>"],
        "config": named(eos="<|im_end|>"),
    },
    "phi 2": {**GPT2, "added": [AddedToken(run, normalized=True) for run in ("  ", "   ", " " * 4, " " * 5, "\t\t")]},
    "gemma": {
        "normalizer": N.Replace(" ", "▁"),
        "pre": P.Split(" ", "merged_with_previous"),
        "decoder": D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse()]),
        "model": {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"},
        "first": ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES],
        "added": [
            AddedToken("<unk>", special=True),
            AddedToken("\n\n", normalized=False),
            AddedToken("▁▁", normalized=False),
        ],
        "post": begins_with("<bos>"),
        "config": named(bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>"),
    },
    "olmo, gpt-neox": {
        "normalizer": N.NFC(),
        "pre": P.ByteLevel(add_prefix_space=False),
        "first": ["<|endoftext|>", "<|padding|>"],
        "added": [AddedToken("  ", normalized=True), AddedToken("|||IP_ADDRESS|||", normalized=True)],
        "post": template("$A <|endoftext|>", "$A <|endoftext|> $B:1 <|endoftext|>:1", "<|endoftext|>"),
        "config": named(eos="<|endoftext|>", pad="<|padding|>"),
    },
    "command-r": {
        "normalizer": N.NFC(),
        "pre": DIGITS,
        "first": ["<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>"],
        "post": template("<BOS_TOKEN> $A", "<BOS_TOKEN> $A $B:1", "<BOS_TOKEN>"),
        "config": named(bos="<BOS_TOKEN>", eos="<EOS_TOKEN>", pad="<PAD>") | ADDS_BOS,
    },
    "bloom": {
        "pre": split(BLOOM),
        "first": ["<unk>", "<s>", "</s>", "<pad>"],
        "post": lambda _: X.ByteLevel(trim_offsets=False),
        "config": named(bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"),
    },
    "whisper": {
        **GPT2,
        "last": ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|notimestamps|>"],
        "added": [AddedToken("<|0.00|>", special=False, normalized=False)],
        "post": template(
            "<|startoftranscript|> <|en|> <|notimestamps|> $A <|endoftext|>",
            "<|startoftranscript|> <|en|> <|notimestamps|> $A $B:1 <|endoftext|>:1",
            "<|startoftranscript|>",
            "<|en|>",
            "<|notimestamps|>",
            "<|endoftext|>",
        ),
    },
    "clip": {
        "normalizer": N.Sequence([N.NFC(), N.Replace(Regex(r"\s+"), " "), N.Lowercase()]),
        "pre": P.Sequence(
            [
                P.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
                P.ByteLevel(add_prefix_space=False),
            ]
        ),
        "model": {"end_of_word_suffix": "</w>", "unk_token": "<|endoftext|>"},
        "decoder": D.Sequence([D.ByteLevel(), D.Replace("</w>", " ")]),
        "last": ["<|startoftext|>", "<|endoftext|>"],
        "post": between("<|startoftext|>", "<|endoftext|>", False, False),
        "config": named(bos="<|startoftext|>", eos="<|endoftext|>", unk="<|endoftext|>", pad="<|endoftext|>"),
    },
    "modernbert": {
        "normalizer": N.NFC(),
        "pre": P.ByteLevel(add_prefix_space=False),
        "first": ["|||IP_ADDRESS|||"],
        "added": [
            AddedToken("  ", normalized=True),
            *(AddedToken(name, special=True) for name in ("[UNK]", "[CLS]", "[SEP]", "[PAD]")),
            AddedToken("[MASK]", lstrip=True, special=True),
        ],
        "post": template("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", "[CLS]", "[SEP]"),
        "config": named(cls="[CLS]", sep="[SEP]", pad="[PAD]", mask="[MASK]", unk="[UNK]"),
    },
    "trinity": {
        "pre": split(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))", LLAMA3),
        "last": CHATML,
        "config": named(eos="<|im_end|>"),
    },
    "kimi": {
        "pre": split(KIMI),
        "last": ["[BOS]", "[EOS]", "<|im_end|>"],
        "config": named(bos="[BOS]", eos="[EOS]"),
    },
    "minicpm, characters": {
        "normalizer": N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]),
        "decoder": D.Sequence([D.Replace("▁", " "), D.Fuse(), D.Strip(" ", 1, 0)]),
        "model": {"unk_token": "<unk>", "fuse_unk": True},
        "first": ["<unk>", "<s>", "</s>"],
        "config": named(bos="<s>", eos="</s>", unk="<unk>") | {"add_bos_token": True, "add_eos_token": True},
    },
}
GENERAL = {"bart, prefix space", "llama 2, older", "falcon", "gemma", "clip", "minicpm, characters"}
"""Families that take the general pipeline."""


def build(family: dict[str, Any], folder: Path) -> Path:
    """Write a family's folder, and return it."""
    model = family.get("model", {})
    made = Tokenizer(models.BPE(**model))
    made.normalizer = family.get("normalizer")
    made.pre_tokenizer = family.get("pre")
    made.decoder = family.get("decoder", D.ByteLevel())
    is_bytes = isinstance(made.decoder, D.ByteLevel) or "end_of_word_suffix" in model
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=family.get("first", []),
        initial_alphabet=P.ByteLevel.alphabet() if is_bytes else ["▁"],
        show_progress=False,
        **{key: model[key] for key in ("end_of_word_suffix",) if key in model},
    )
    draw = random.Random(0)
    made.train_from_iterator([" ".join(draw.choices(WORDS, k=9)) for _ in range(200)], trainer)
    made.add_special_tokens(family.get("last", []))
    made.add_tokens(family.get("added", []))
    if "post" in family:
        made.post_processor = family["post"](made)
    file = json.loads(made.to_str())
    # The trainer adds all tokens that it is given; published files do not list those of bytes.
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] not in BYTES]
    (folder / "tokenizer.json").write_text(json.dumps(file))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **family["config"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
