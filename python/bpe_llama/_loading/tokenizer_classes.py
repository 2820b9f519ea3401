"""The tokenizer classes of transformers: which one a folder names, its tokens, the options of its pipeline.

Source: ``models/*/tokenization_*.py`` of transformers 5.23; for the names in ``_BY_MODEL_TYPE``,
``models/auto/tokenization_auto.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bpe_llama._core import shown

Json = dict[str, Any]


@dataclass(frozen=True)
class TokenizerClass:
    """The pipeline of one tokenizer class.

    Attributes:
        tokens: The default token of each role. If ``pad_token`` is missing, the section ``padding`` of a
            tokenizer.json may name it; if it is ``None``, not.
        post_processor: The kind of post-processor; ``"ends"`` follows ``add_bos_token`` and ``add_eos_token``.
        normalizer: The normalizer in the format of tokenizer.json.
        steps: The pre-tokenizers before the last one.
        byte_level: Whether the last pre-tokenizer is ByteLevel; else it is BertPreTokenizer.
        use_regex: The ``use_regex`` of ByteLevel.
        add_prefix_space: The default of the option; ``None`` if the class does not have it.
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

    def prefix_space(self, config: Mapping[str, Any]) -> bool:
        """Return whether a space is prepended to a text, given a tokenizer_config.json."""
        return self.add_prefix_space is not None and bool(config.get("add_prefix_space", self.add_prefix_space))

    def pre_tokenizer(self, config: Mapping[str, Any]) -> Json:
        """Return the pre-tokenizer, given a tokenizer_config.json."""
        last: Json = {"type": "BertPreTokenizer"}
        if self.byte_level:
            trim = trim_offsets(config) if self.takes_trim_offsets else True
            last = byte_level(self.prefix_space(config), trim, self.use_regex)
        return {"type": "Sequence", "pretokenizers": [*self.steps, last]} if self.steps else last

    def decoder(self) -> Json:
        """Return the decoder; its last step is the cleanup of decoded text in the class."""
        if not self.byte_level:
            return {"type": "BPEDecoder", "suffix": self.suffix}
        more = _suffix_to_spaces(self.suffix) if self.suffix else []
        if self.post_processor == "whisper":
            more = [{"type": "Replace", "pattern": {"Regex": r"<\|\d+\.\d+\|>"}, "content": ""}]
        return {"type": "Sequence", "decoders": [byte_level(), *more]} if more else byte_level()


def byte_level(add_prefix_space: bool = True, trim_offsets: bool = True, use_regex: bool = True) -> Json:
    """Return a ByteLevel component: a pre-tokenizer, post-processor or decoder."""
    options = {"add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets, "use_regex": use_regex}
    return {"type": "ByteLevel", **options}


def trim_offsets(config: Mapping[str, Any]) -> bool:
    """Return the option ``trim_offsets`` of a tokenizer_config.json."""
    return bool(config.get("trim_offsets", True))


def _suffix_to_spaces(suffix: str) -> list[Json]:
    """Return the steps that replace word ends by spaces and strip white space as ``str.strip`` does."""
    ends = {"Regex": r"\A[\s\x1c-\x1f]+|[\s\x1c-\x1f]+\z"}
    return [
        {"type": "Replace", "pattern": {"String": suffix}, "content": " "},
        {"type": "Replace", "pattern": ends, "content": ""},
    ]


def _split(regex: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN3_5_PATTERN = _QWEN2_PATTERN.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}")
QWEN3_5_STEP = _split(_QWEN3_5_PATTERN)
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

_LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_MORE_TOKENS: dict[str, dict[str, str | None]] = {
    "TokenizersBackend": {},
    "Qwen3_5Tokenizer": CLASSES["Qwen2Tokenizer"].tokens,
    "LlamaTokenizer": {**_LLAMA_TOKENS},
    "CodeLlamaTokenizer": {
        **_LLAMA_TOKENS,
        "prefix_token": "\u2581<PRE>",
        "middle_token": "\u2581<MID>",
        "suffix_token": "\u2581<SUF>",
        "eot_token": "\u2581<EOT>",
        "fill_token": "<FILL_ME>",
    },
    "GemmaTokenizer": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
}

# Classes by the model_type of config.json, for folders that name no class.
_BY_MODEL_TYPE = {
    "BartTokenizer": "florence2",
    "BlenderbotTokenizer": "blenderbot",
    "CLIPTokenizer": "aimv2 clip clipseg groupvit omdet-turbo oneformer owlv2 owlvit sam3 sam3_video xclip",
    "CodeLlamaTokenizer": "code_llama",
    "CohereTokenizer": "aya_vision cohere cohere2",
    "DebertaTokenizer": "deberta",
    "GPT2Tokenizer": """blip-2 codegen dbrx emu3 gpt2 gpt_neo gptj hyperclovax_vision_v2 instructblip instructblipvideo
        jais2 opt phi starcoder2""",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "GemmaTokenizer": """diffusion_gemma gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma
        shieldgemma2 t5gemma zaya""",
    "HerbertTokenizer": "herbert",
    "LEDTokenizer": "led",
    "LlamaTokenizer": "idefics idefics2",
    "MvpTokenizer": "mvp",
    "OpenAIGPTTokenizer": "openai-gpt",
    "Qwen2Tokenizer": """audioflamingo3 colqwen2 cosmos3_omni dots3_note fun_asr_nano hunyuan_vl internvl lighton_ocr
        moss_transcribe_diarize ovis2 qianfan_ocr qwen2 qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3
        qwen3_asr qwen3_moe qwen3_next qwen3_omni_moe qwen3_vl qwen3_vl_moe vibevoice""",
    "Qwen3_5Tokenizer": "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp",
    "RobertaTokenizer": """bart bridgetower clap data2vec-text ibert lilt longformer mega mra roberta
        roberta-prelayernorm""",
    "WhisperTokenizer": "whisper",
}
# Models with unknown classes.
_OF_UNKNOWN_CLASSES = """
    albert align bark barthez bartpho bert bert-generation bert-japanese bertweet big_bird biogpt blenderbot-small
    blip bros byt5 camembert canine chinese_clip clvp convbert cpm cpmant ctrl data2vec-audio deberta-v2 dia
    distilbert dpr electra ernie esm esmc esmfold2 flaubert flava fnet fsmt funnel git gpt-sw3 gpt_neox_japanese
    granite_speech5_ctc grounding-dino gte hubert jina_embeddings_v3 lasr_ctc lasr_encoder layoutlm layoutlmv2
    layoutlmv3 layoutxlm luke lxmert m2m_100 marian markuplm mbart mbart50 megatron-bert metaclip_2 mgp-str mluke
    mm-grounding-dino mobilebert mpnet mt5 musicgen musicgen_melody myt5 nemotron3_5_asr nemotron_asr_streaming
    nezha nllb nllb-moe nomic_bert nougat parakeet_ctc parakeet_rnnt parakeet_tdt pegasus perceiver phobert plbart
    pp_formulanet prophetnet qdqbert rag realm reformer rembert retribert roc_bert roformer seamless_m4t
    seamless_m4t_v2 siglip siglip2 speech_to_text speecht5 splinter squeezebert switch_transformers t5 tapas tipsv2
    trocr tvp udop unispeech unispeech-sat videoprism vilt visual_bert vits wav2vec2 wav2vec2-bert
    wav2vec2-conformer wav2vec2_phoneme xglm xlm xlm-roberta xlnet xmod yoso"""
# Models whose folders often name a wrong class, so that of the model counts.
_IGNORES_NAMED_CLASS = ["hyperclovax_vision_v2", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen4_exp"]
# Models whose tokenizer.json is read unchanged, whatever class their folders name.
_READ_UNCHANGED = """EvollaModel arctic aria beam bigbird_pegasus camembertv2-base canary chatlm cohere_asr ernie4_5
    ernie4_5_moe flex_olmo fuyu glm glm4 glm4_moe glm4_moe_lite glm4v glm4v_moe glm_image glmasr got_ocr2 gpt_bigcode
    gradium_phonon_tts granite granitemoe granitemoehybrid granitemoeshared h2ovl_chat hyperclovax hyperclovax_vlm
    internlm2 internlm3 iquestcoder jamba kimi_k25 kimi_linear kosmos-2 llava llava_next mimo_v2_flash minicpm3
    minicpm_ocr minicpmv minicpmv4_6 minicpmv4_7 minimax_m2 ministral ministral3 mistral mistral3 mistral_large4 mixtral
    modernbert modernbert-decoder molmo molmo2 nemo_speechlm nemotron nvfp4 nystromformer olmo2 olmo3 olmo_hybrid
    opencua openvla paddleocr_vl pegasus_x persimmon phi3 phi3_v phimoe pix2struct pixtral pocket_tts smolvlm stablelm
    step3_vl umt5 vipllava voxtral voxtral_realtime xlm-roberta-xl"""


def class_tokens(name: str | None) -> Mapping[str, str | None] | None:
    """Return the default token of each role of a class, or ``None`` if the class is unknown."""
    return CLASSES[name].tokens if name in CLASSES else _MORE_TOKENS.get(name or "")


def class_name_for(model_type: str) -> str | None:
    """Return the name of the class that transformers uses for a model, or ``None`` if it is unknown."""
    return next((name for name, types in _BY_MODEL_TYPE.items() if model_type in types.split()), None)


def class_of(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> str | None:
    """Return the class with which transformers reads the tokenizer.json of a folder, without the suffix "Fast".

    ``"TokenizersBackend"`` reads it unchanged; ``None`` is an unknown class.

    Args:
        config: The content of tokenizer_config.json.
        model_config: The content of config.json.

    Raises:
        ValueError: If the name of the class is no str.
    """
    named = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    if not isinstance(named, str | None):
        raise ValueError(f"tokenizer_class is {shown(named)}; expected a str")
    model_type = model_config.get("model_type")
    if "auto_map" in config:
        return None
    if model_type in _READ_UNCHANGED.split():
        return "TokenizersBackend"
    if isinstance(model_type, str) and (named is None or model_type in _IGNORES_NAMED_CLASS):
        other = None if model_type in _OF_UNKNOWN_CLASSES.split() else "TokenizersBackend"
        return class_name_for(model_type) or other
    name = "TokenizersBackend" if named is None else named.removesuffix("Fast")
    return "TokenizersBackend" if name in ("PreTrainedTokenizer", "PythonBackend") else name
