"""The tokenizers of model families, as their publishers configure them: ids, ends and text equal transformers'.

The pipelines are those of the published files; the vocabularies are small ones, trained on the spot.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bench.published import PUBLISHED
from bpe_llama import Tokenizer as Ours

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
    *(
        "the",
        "The",
        "don't",
        "WE'LL",
        "ab",
        "CAFÉ",
        "café",
        "e\u0301",
        "naïve",
        "ﬁne",
        "ſo",
        "日本語",
        "テスト",
        "中文字",
        "한국어",
    ),
    *(
        "1",
        "12345",
        "٣٤",
        "Ⅷ",
        "...",
        "?!",
        "(a|b)",
        "#$%",
        "x_y",
        "😀",
        "👩‍👩‍👧",
        " ",
        "  ",
        "   ",
        "\n",
        "\r\n",
        "\t",
        "\n\n",
    ),
    *(
        "\u00a0",
        "\u3000",
        "\u200d",
        "▁",
        "▁the",
        "Ġ",
        "<s>",
        "</s>",
        "<|endoftext|>",
        "<|im_start|>",
        "<mask>",
        "<0x41>",
        "।",
        "ไทย",
    ),
]


def split(*regexes: str, use_regex: bool = False, behaviour: str = "isolated") -> Any:
    """Return splits by regexes and the byte alphabet."""
    steps = [P.Split(Regex(regex), behavior=behaviour, invert=behaviour == "removed") for regex in regexes]
    return P.Sequence([*steps, P.ByteLevel(add_prefix_space=False, use_regex=use_regex)])


def template(single: str, pair: str, *names: str) -> Callable[[Tokenizer], Any]:
    return lambda made: X.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, made.token_to_id(name)) for name in names]
    )


def roberta(made: Tokenizer) -> Any:
    return X.RobertaProcessing(("</s>", made.token_to_id("</s>")), ("<s>", made.token_to_id("<s>")), True, False)


def llama2_layout(normalized: bool) -> dict[str, Any]:
    return {
        "normalizer": N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]),
        "decoder": D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)]),
        "model": {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"},
        "first": ["<unk>", "<s>", "</s>", *BYTES],
        "added": [AddedToken(name, normalized=normalized, special=True) for name in ("<unk>", "<s>", "</s>")],
        "post": template("<s> $A", "<s> $A <s>:1 $B:1", "<s>"),
        "config": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None},
    }


SP = ["▁", *BYTES]
GPT2 = {
    "pre": P.ByteLevel(add_prefix_space=False),
    "last": ["<|endoftext|>"],
    "config": {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"},
}
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT2, "post": lambda _: X.ByteLevel(trim_offsets=False)},
    "roberta": {
        "pre": P.ByteLevel(add_prefix_space=False),
        "first": ["<s>", "<pad>", "</s>", "<unk>"],
        "added": [AddedToken("<mask>", lstrip=True, special=True)],
        "post": roberta,
        "config": {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "cls_token": "<s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
        },
    },
    "bart, prefix space": {
        "pre": P.ByteLevel(add_prefix_space=True),
        "first": ["<s>", "<pad>", "</s>", "<unk>"],
        "post": roberta,
        "config": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
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
        "post": lambda made: X.Sequence(
            [
                X.ByteLevel(trim_offsets=True),
                template("<|begin_of_text|> $A", "<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", "<|begin_of_text|>")(
                    made
                ),
            ]
        ),
        "config": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    },
    "llama 4, gpt-oss": {
        "pre": split(O200K),
        "last": ["<|startoftext|>", "<|endoftext|>", "<|return|>"],
        "config": {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
    },
    "qwen 2, qwen 3": {
        "normalizer": N.NFC(),
        "pre": split(QWEN2),
        "last": CHATML,
        "added": [
            AddedToken("<tool_call>", special=False, normalized=False),
            AddedToken("<think>", special=False, normalized=False),
        ],
        "config": {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    },
    "qwen 3.5": {"normalizer": N.NFC(), "pre": split(QWEN35), "last": CHATML, "config": {"eos_token": "<|im_end|>"}},
    "deepseek v3": {
        "pre": split(*DEEPSEEK),
        "first": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"],
        "post": template(
            "<｜begin▁of▁sentence｜> $A",
            "<｜begin▁of▁sentence｜> $A <｜begin▁of▁sentence｜>:1 $B:1",
            "<｜begin▁of▁sentence｜>",
        ),
        "config": {
            "bos_token": "<｜begin▁of▁sentence｜>",
            "eos_token": "<｜end▁of▁sentence｜>",
            "add_bos_token": True,
            "add_eos_token": False,
        },
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
        "config": {"eos_token": "<|endoftext|>"},
    },
    "starcoder": {
        "pre": P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=False)]),
        "first": ["<|endoftext|>", "<fim_prefix>"],
        "config": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    },
    "smollm 2": {
        "pre": P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=False)]),
        "first": CHATML,
        "config": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    },
    "smollm 3": {
        "pre": split(LLAMA3),
        "last": ["<|begin_of_text|>", "<|im_end|>"],
        "config": {"eos_token": "<|im_end|>"},
    },
    "phi 2": {
        **GPT2,
        "added": [AddedToken(" " * length, normalized=True) for length in range(2, 6)]
        + [AddedToken("\t\t", normalized=True)],
    },
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
        "post": template("<bos> $A", "<bos> $A <bos>:1 $B:1", "<bos>"),
        "config": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    },
    "olmo, gpt-neox": {
        "normalizer": N.NFC(),
        "pre": P.ByteLevel(add_prefix_space=False),
        "first": ["<|endoftext|>", "<|padding|>"],
        "added": [AddedToken("  ", normalized=True), AddedToken("|||IP_ADDRESS|||", normalized=True)],
        "post": template("$A <|endoftext|>", "$A <|endoftext|> $B:1 <|endoftext|>:1", "<|endoftext|>"),
        "config": {"eos_token": "<|endoftext|>", "pad_token": "<|padding|>"},
    },
    "command-r": {
        "normalizer": N.NFC(),
        "pre": P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=False)]),
        "first": ["<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>"],
        "post": template("<BOS_TOKEN> $A", "<BOS_TOKEN> $A $B:1", "<BOS_TOKEN>"),
        "config": {
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<EOS_TOKEN>",
            "pad_token": "<PAD>",
            "add_bos_token": True,
            "add_eos_token": False,
        },
    },
    "bloom": {
        "pre": split(BLOOM),
        "first": ["<unk>", "<s>", "</s>", "<pad>"],
        "post": lambda _: X.ByteLevel(trim_offsets=False),
        "config": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
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
        "post": lambda made: X.RobertaProcessing(
            ("<|endoftext|>", made.token_to_id("<|endoftext|>")),
            ("<|startoftext|>", made.token_to_id("<|startoftext|>")),
            False,
            False,
        ),
        "config": {
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        },
    },
    "modernbert": {
        "normalizer": N.NFC(),
        "pre": P.ByteLevel(add_prefix_space=False),
        "first": ["|||IP_ADDRESS|||"],
        "added": [
            AddedToken("  ", normalized=True),
            AddedToken("[UNK]", special=True),
            AddedToken("[CLS]", special=True),
            AddedToken("[SEP]", special=True),
            AddedToken("[PAD]", special=True),
            AddedToken("[MASK]", lstrip=True, special=True),
        ],
        "post": template("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", "[CLS]", "[SEP]"),
        "config": {
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "mask_token": "[MASK]",
            "unk_token": "[UNK]",
        },
    },
    "trinity": {
        "pre": split(r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))", LLAMA3),
        "last": CHATML,
        "config": {"eos_token": "<|im_end|>"},
    },
    "kimi": {
        "pre": split(KIMI),
        "last": ["[BOS]", "[EOS]", "<|im_end|>"],
        "config": {"bos_token": "[BOS]", "eos_token": "[EOS]"},
    },
    "minicpm, characters": {
        "normalizer": N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]),
        "decoder": D.Sequence([D.Replace("▁", " "), D.Fuse(), D.Strip(" ", 1, 0)]),
        "model": {"unk_token": "<unk>", "fuse_unk": True},
        "first": ["<unk>", "<s>", "</s>"],
        "config": {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": True,
        },
    },
}
FAST = {
    "gpt2",
    "roberta",
    "llama 2",
    "mistral, metaspace",
    "llama 3",
    "llama 4, gpt-oss",
    "qwen 2, qwen 3",
    "qwen 3.5",
    "deepseek v3",
    "starcoder",
    "smollm 2",
    "smollm 3",
    "phi 2",
    "olmo, gpt-neox",
    "command-r",
    "bloom",
    "whisper",
    "modernbert",
    "trinity",
    "kimi",
}


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


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    return build(FAMILIES[name], tmp_path_factory.mktemp("family") / "")


def texts() -> list[str]:
    draw = random.Random(1)
    return ["", " ", "a", *("".join(draw.choices([*WORDS, " ", " "], k=draw.randrange(1, 12))) for _ in range(150))]


def check(ours: Ours, theirs: PreTrainedTokenizerFast) -> None:
    ends = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id)
    stated = (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id)
    assert ends == stated
    assert len(ours) == len(theirs)
    for text in texts():
        expected = theirs(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        got = ours(text, allowed_special="all", return_offsets_mapping=True, return_special_tokens_mask=True)
        assert got["input_ids"] == expected["input_ids"], text
        assert got["offset_mapping"] == expected["offset_mapping"], text
        assert got["attention_mask"] == expected["attention_mask"]
        assert got["special_tokens_mask"] == expected["special_tokens_mask"]
        ids = expected["input_ids"]
        for skip in (False, True):
            wanted = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == wanted, text
            stream = ours.decode_stream(skip_special_tokens=skip)
            assert "".join(map(stream.push, ids)) + stream.flush() == wanted
    for first, second in zip(texts()[3:30], texts()[40:67], strict=True):
        expected = theirs(first, second, max_length=9, truncation=True, return_token_type_ids=True)
        got = ours(first, second, allowed_special="all", max_length=9, truncation=True, return_token_type_ids=True)
        assert got["input_ids"] == expected["input_ids"]
        assert got["token_type_ids"] == expected["token_type_ids"]


def test_a_family_as_published(folder: Path) -> None:
    check(Ours.from_file(folder), PreTrainedTokenizerFast.from_pretrained(folder))


def test_a_family_saved_by_us(folder: Path, tmp_path: Path) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    loaded = Ours.from_file(folder)
    loaded.save(tmp_path / "saved")
    check(Ours.from_file(tmp_path / "saved"), theirs)
    check(pickle.loads(pickle.dumps(loaded)), theirs)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path / "saved")
    ends = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    for text in texts():
        assert again(text)["input_ids"] == theirs(text)["input_ids"]
    ours = Ours.from_file(tmp_path / "saved")
    known = (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id)
    assert tuple(getattr(again, end) for end in ends) == known


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_most_families_take_the_fast_way(name: str, tmp_path: Path) -> None:
    loaded = Ours.from_file(build(FAMILIES[name], tmp_path))
    assert (loaded.pipeline == "fast") is (name in FAST), loaded.general_because


@pytest.mark.parametrize("name", ["llama 2", "mistral, metaspace", "gemma"])
def test_bytes_of_unknown_characters_are_streamed(name: str, tmp_path: Path) -> None:
    ours, theirs = Ours.from_file(build(FAMILIES[name], tmp_path)), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    word = theirs.encode("the", add_special_tokens=False)
    end = theirs.eos_token_id
    for spelt in ("हिन्दी".encode(), "ह".encode() + b"\xe0", b"\xe0" + "ह".encode(), b"\xff\n", b"\n\n"):
        run = theirs.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in spelt])
        for ids in (run, [*run, *word], [*word, *run, end, *run], [end, *run[:2], end, *run[2:], *word]):
            for skip in (False, True):
                stream = ours.decode_stream(skip_special_tokens=skip)
                parts = [stream.push(i) for i in ids]
                assert "".join(parts) + stream.flush() == theirs.decode(ids, skip_special_tokens=skip)
