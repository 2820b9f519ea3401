"""The options of ``params.py`` as keyword arguments, so that type checkers check callers; a test holds both equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from torch import Tensor

from bpe_llama.model.sampling.constraint import Constraint
from bpe_llama.model.sampling.processors import LogitsProcessor


class _SamplerKeywords(TypedDict, total=False):
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    preset: str
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    banned_ids: Sequence[int] | Tensor | None
    allowed_ids: Sequence[int] | Tensor | None


class SamplerKeywords(_SamplerKeywords, total=False):
    """Options of `SamplerParams`."""

    logit_bias: Mapping[int, float] | Tensor | None


class _SharedKeywords(_SamplerKeywords, total=False):
    logit_bias: Mapping[int, float] | None
    penalty_scope: str
    no_repeat_ngram_size: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None
    top_n_sigma: float
    xtc_probability: float
    xtc_threshold: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    filter_order: Sequence[str] | None
    max_new_tokens: int
    min_new_tokens: int
    eos_id: int | Sequence[int] | None
    logprobs: bool
    top_logprobs: int
    prompt_logprobs: bool
    constraint: Constraint | None


class GenerationKeywords(_SharedKeywords, total=False):
    """Options of `GenerationOptions`."""

    seed: int | None
    bad_words: Sequence[Sequence[int]] | None
    dry_sequence_breakers: Sequence[Sequence[int]] | None


class GenerateKeywords(GenerationKeywords, total=False):
    """Options of `LlamaForCausalLM.generate`, which `bpe_llama.model.generation.generate` documents."""

    num_return_sequences: int
    num_beams: int
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    cache: str
    cuda_graph: bool
    do_sample: bool | None


class _TextKeywords(_SharedKeywords, total=False):
    bad_words: Sequence[str | Sequence[int]] | None
    dry_sequence_breakers: str | Sequence[str | Sequence[int]] | None
    stop: str | Iterable[str] | None
    bos: bool | None
    allowed_special: Iterable[str] | str
    reuse: bool | None
    skip_special_tokens: bool | None
    json_schema: Mapping[str, Any] | str | type | None
    json_object: bool
    regex: str | None
    choice: Sequence[str] | None
    grammar: str | None


class TextKeywords(_TextKeywords, total=False):
    """Options of `TextGenerator.stream`."""

    seed: int | None


class BatchKeywords(_TextKeywords, total=False):
    """Options of `TextGenerator.generate_batch`."""

    seed: int | Sequence[int | None] | None


class TextAndSearchKeywords(TextKeywords, total=False):
    """Options of `TextGenerator.generate`."""

    num_beams: int
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    do_sample: bool | None
