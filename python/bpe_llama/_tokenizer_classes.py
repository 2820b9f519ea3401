"""The pipelines that transformers' tokenizer classes build around a ``vocab.json`` and a ``merges.txt``.

Source: ``models/*/tokenization_*.py`` of transformers 5.23; for the names in ``_BY_MODEL_TYPE``,
``models/auto/tokenization_auto.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]


@dataclass(frozen=True)
class TokenizerClass:
    """The pipeline that one class builds.

    Attributes:
        tokens: The default token of each role. Where ``pad_token`` is missing, the section ``padding`` of a
            tokenizer.json may name it; where it is ``None``, not.
        post_processor: The kind of post-processor; ``"ends"`` obeys ``add_bos_token`` and ``add_eos_token``.
        normalizer: As tokenizer.json spells it.
        steps: The pre-tokenizers before the last one.
        byte_level: Whether the last pre-tokenizer is ByteLevel; else it is BertPreTokenizer.
        use_regex: The ``use_regex`` of ByteLevel.
        add_prefix_space: The default of the option; ``None`` where the class does not have it.
        takes_trim_offsets: Whether the option ``trim_offsets`` is passed to ByteLevel.
        has_unk: Whether the model has an ``unk_token``.
        suffix: The ``end_of_word_suffix`` of the model.
    """

    tokens: dict[str, str | None]
    post_processor: Literal["ends", "byte_level", "roberta", "clip", "deberta", "bert", "whisper"] = "ends"
    normalizer: Json | None = None
    steps: list[Json] = field(default_factory=list)
    byte_level: bool = True
    use_regex: bool = True
    add_prefix_space: bool | None = False
    takes_trim_offsets: bool = False
    has_unk: bool = False
    suffix: str = ""


def _split(regex: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_NFC = {"type": "NFC"}
_END = "<|endoftext|>"
_GPT2_TOKENS: dict[str, str | None] = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
_BART_TOKENS: dict[str, str | None] = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_ROBERTA = TokenizerClass(_BART_TOKENS, "roberta")


def _bert_normalizer(lowercase: bool, strip_accents: bool | None) -> Json:
    shared = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    return shared | {"strip_accents": strip_accents, "lowercase": lowercase}


CLASSES = {
    "GPT2Tokenizer": TokenizerClass(_GPT2_TOKENS | {"pad_token": None}),
    "CodeGenTokenizer": TokenizerClass(_GPT2_TOKENS | {"pad_token": None}, "byte_level"),
    "GPTNeoXTokenizer": TokenizerClass(
        _GPT2_TOKENS | {"pad_token": "<|padding|>"}, normalizer=_NFC, takes_trim_offsets=True
    ),
    "WhisperTokenizer": TokenizerClass(_GPT2_TOKENS, "whisper"),
    "Qwen2Tokenizer": TokenizerClass(
        {"eos_token": _END, "unk_token": _END, "pad_token": _END},
        normalizer=_NFC,
        steps=[_split(_QWEN2_PATTERN)],
        use_regex=False,
    ),
    "CohereTokenizer": TokenizerClass(
        {
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "unk_token": "<UNK>",
            "sep_token": "<SEP>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "mask_token": "<MASK_TOKEN>",
        },
        normalizer=_NFC,
        steps=[{"type": "Digits", "individual_digits": True}],
    ),
    "RobertaTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "LEDTokenizer": _ROBERTA,
    "LongformerTokenizer": _ROBERTA,
    "MvpTokenizer": _ROBERTA,
    "BlenderbotTokenizer": TokenizerClass(_BART_TOKENS, add_prefix_space=True),
    "DebertaTokenizer": TokenizerClass(
        {
            "bos_token": "[CLS]",
            "eos_token": "[SEP]",
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
        "deberta",
    ),
    "CLIPTokenizer": TokenizerClass(
        {"bos_token": "<|startoftext|>", "eos_token": _END, "unk_token": _END, "pad_token": _END},
        "clip",
        normalizer={
            "type": "Sequence",
            "normalizers": [
                _NFC,
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        steps=[_split(_CLIP_PATTERN, "Removed", invert=True)],
        add_prefix_space=None,
        has_unk=True,
        suffix="</w>",
    ),
    "OpenAIGPTTokenizer": TokenizerClass(
        {"unk_token": "<unk>"},
        normalizer=_bert_normalizer(lowercase=True, strip_accents=None),
        byte_level=False,
        add_prefix_space=None,
        has_unk=True,
        suffix="</w>",
    ),
    "HerbertTokenizer": TokenizerClass(
        {
            "unk_token": "<unk>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "cls_token": "<s>",
            "mask_token": "<mask>",
        },
        "bert",
        normalizer=_bert_normalizer(lowercase=False, strip_accents=False),
        byte_level=False,
        add_prefix_space=None,
        has_unk=True,
        suffix="</w>",
    ),
}

# The class for each type of model, where tokenizer_config.json names none.
_BY_MODEL_TYPE = {
    "GPT2Tokenizer": "codegen gpt2 gpt_neo gptj opt phi starcoder2",
    "GPTNeoXTokenizer": "gpt_neox mamba mamba2 mpt olmo olmoe rwkv",
    "RobertaTokenizer": "bart led longformer mvp roberta roberta-prelayernorm",
    "Qwen2Tokenizer": "qwen2 qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_next qwen3_vl",
    "CLIPTokenizer": "clip clipseg groupvit owlv2 owlvit",
    "BlenderbotTokenizer": "blenderbot",
    "CohereTokenizer": "aya_vision cohere cohere2",
    "GemmaTokenizer": "diffusion_gemma gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma "
    "shieldgemma2 t5gemma zaya",
    "LlamaTokenizer": "idefics idefics2",
    "DebertaTokenizer": "deberta",
    "HerbertTokenizer": "herbert",
    "OpenAIGPTTokenizer": "openai-gpt",
    "WhisperTokenizer": "whisper",
}


def class_name_for(model_type: str) -> str | None:
    """Return the name of the class that transformers takes for a model, or ``None`` where it is not known here."""
    return next((name for name, types in _BY_MODEL_TYPE.items() if model_type in types.split()), None)
