"""The options of generation, each defined once.

| class | options | used by |
|---|---|---|
| `Filters` (``filters.py``) | temperature, top-k, top-p ... | the torch sampler's filters |
| `SamplerParams` | and biases, bans, penalties | `bpe_llama.Sampler`, `sample_logits` |
| `SamplingParams` | and all else that acts on logits | the sampler dispatch, beam search |
| `GenerationOptions` | and lengths, ends, seed, log-probabilities | a request |

``keywords.py`` names the same options for type checkers, and the command line has a flag for most; tests compare both
with these classes.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bpe_llama._arguments import boolean, check_keywords, iterator
from bpe_llama._core import shown
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.config_values import is_one_of
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.sampling.checks import (
    check_count,
    check_ending_ids,
    check_names,
    check_number,
    check_whole,
    read_once,
    sequences_of_ids,
)
from bpe_llama.model.sampling.constraint import Constraint
from bpe_llama.model.sampling.filters import Filters
from bpe_llama.model.sampling.ordered import FILTER_OPTIONS, FILTERS, LLAMA_CPP_FILTERS
from bpe_llama.model.sampling.processors import LogitsProcessor
from bpe_llama.sampling import Sampler

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bpe_llama.model.sampling.keywords import GenerationKeywords

PENALTY_SCOPES = ("context", "output")
_SAMPLER_FILTERS = tuple(field.name for field in fields(Filters))
"""The options of the filters that `bpe_llama.Sampler` has."""


@dataclass(frozen=True, kw_only=True)
class SamplerParams(Filters):
    """Options of `bpe_llama.Sampler` and of its torch twin, `sample_logits`: biases, bans, penalties, then filters.

    Args:
        repetition_penalty: Divides positive and multiplies negative logits of ids already present (Keskar et al. 2019,
            arXiv:1909.05858).
        presence_penalty: Subtracted from the logits of ids already present.
        frequency_penalty: Subtracted once for each time the id is present.
        logit_bias: Added to the logits of these ids; `sample_logits` takes a tensor, (V,) or (B, V), too.
        banned_ids: Never drawn; `sample_logits` takes an int64 tensor, (N,) or (B, N), with negative padding, too.
        allowed_ids: If given, only these are drawn; as ``banned_ids``.

    Raises:
        ValueError: If an option of a filter is out of range.

    Example:
        >>> SamplerParams(temperature=1.0, presence_penalty=0.5).penalises
        True
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Tensor | None = None
    banned_ids: Sequence[int] | Tensor | None = None
    allowed_ids: Sequence[int] | Tensor | None = None

    @property
    def penalises(self) -> bool:
        """Return whether a penalty differs from its default, under which it has no effect."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def sampler_options(self) -> dict[str, Any]:
        """Return the options of `bpe_llama.Sampler` and `sample_logits`."""
        return {field.name: getattr(self, field.name) for field in fields(SamplerParams)}


@dataclass(frozen=True, kw_only=True)
class SamplingParams(SamplerParams):
    """All options that act on logits: those of `SamplerParams`, logits processors and further filters.

    Biases, bans, penalties, n-grams, bad words, DRY and logits processors act in that order, then the filters.

    Args:
        penalty_scope: The ids that the three penalties apply to: "context" is prompt and continuation, "output" the
            continuation alone, as for OpenAI's and vLLM's presence and frequency penalties.
        no_repeat_ngram_size: No n-gram of this many ids occurs twice; 0 allows all. As in transformers.
        bad_words: Sequences of ids that are never completed, as transformers' ``bad_words_ids``. `TextGenerator` takes
            strings too.
        dry_multiplier: Scales DRY's penalty for lengthening a repetition (`dry_penalties` in
            `bpe_llama.model.sampling.processors`); 0 is no penalty.
        dry_base: The factor by which that penalty grows with each further id.
        dry_allowed_length: The longest repetition without a penalty, in ids.
        dry_penalty_last_n: How many of the last ids DRY searches; -1 for all.
        dry_sequence_breakers: Sequences of ids across which nothing is a repetition. `TextGenerator` takes strings
            too; its default is llama.cpp's: line feed, colon, quotation mark, asterisk.
        logits_processor: One or several callables that change the logits: see `LogitsProcessor`.
        top_n_sigma: Keep ids whose score is at most this many standard deviations below the highest; 0 keeps all.
        xtc_probability: How often XTC drops the most likely ids: all whose probability reaches ``xtc_threshold``,
            except the least likely of them.
        xtc_threshold: The probability from which XTC drops ids; above 0.5 it never acts.
        mirostat: 1 or 2 draws by mirostat of that version, in place of all filters but the temperature; 0 is off.
        mirostat_tau: Mirostat's target surprise, in bits.
        mirostat_eta: Mirostat's learning rate.
        filter_order: Names of filters in the order in which they act: "top_n_sigma", "temperature", "top_k", "top_p",
            "min_p", "typical_p", "xtc". Filters left out do not act. None is all of them in the order of this list, or
            in llama.cpp's with the preset "llama_cpp".

    Raises:
        ValueError: If a value is out of range, naming option, value and range.
        TypeError: If one is of another type.
    """

    logit_bias: Mapping[int, float] | None = None
    penalty_scope: str = "context"
    no_repeat_ngram_size: int = 0
    bad_words: Sequence[Sequence[int]] | None = None
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[Sequence[int]] | None = None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None
    top_n_sigma: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    filter_order: Sequence[str] | None = None

    def __post_init__(self) -> None:
        vars(self).update(read_once(vars(self)))
        for name in ("no_repeat_ngram_size", "dry_allowed_length"):
            check_count(name, getattr(self, name), 0)
        check_count("dry_penalty_last_n", self.dry_penalty_last_n, -1)
        for name in ("dry_multiplier", "top_n_sigma", "mirostat_tau", "mirostat_eta"):
            check_number(name, getattr(self, name), 0, math.inf)
        check_number("dry_base", self.dry_base, 1, math.inf)
        for name in ("xtc_probability", "xtc_threshold"):
            check_number(name, getattr(self, name), 0, 1)
        for option in fields(SamplerParams):  # the sampler checks their ranges
            value = getattr(self, option.name)
            if isinstance(option.default, float) and not hasattr(value, "__float__"):
                raise TypeError(f"{option.name} is {shown(value)}; expected a number")
        if not is_one_of(self.penalty_scope, PENALTY_SCOPES):
            raise ValueError(
                f"penalty_scope is {shown(self.penalty_scope)}; expected one of {', '.join(PENALTY_SCOPES)}"
            )
        for name in ("bad_words", "dry_sequence_breakers"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, sequences_of_ids(name, getattr(self, name)))
        self._check_filters()
        _ = self.sampler, self.processors  # raise for values out of range, before any work is done

    def _check_filters(self) -> None:
        check_whole("mirostat", self.mirostat, "0 (off), 1 or 2")
        if self.mirostat not in (0, 1, 2):
            raise ValueError(f"mirostat is {shown(self.mirostat)}; expected 0 (off), 1 or 2")
        others = [name for name in (*FILTER_OPTIONS.values(), "filter_order") if name not in ("temperature", "top_p")]
        if self.mirostat:
            self._refuse_changed(others, f"mirostat {self.mirostat} takes the place of all filters but the temperature")
        if self.filter_order is None:
            return
        check_names("filter_order", self.filter_order, FILTERS)
        left_out = [option for name, option in FILTER_OPTIONS.items() if name not in self.filter_order]
        self._refuse_changed(sorted(left_out), "filter_order leaves it out")

    def _refuse_changed(self, options: Sequence[str], why: str) -> None:
        """Raise for options that differ from their defaults, since they would have no effect."""
        for name in options:
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"{name} is {shown(getattr(self, name))}, but {why}")

    @cached_property
    def sampler(self) -> Sampler:
        """Return the sampler of these options."""
        return Sampler(**self.sampler_options)

    @cached_property
    def processors(self) -> tuple[LogitsProcessor, ...]:
        """Return the callables of ``logits_processor``."""
        name, given = "logits_processor", self.logits_processor
        expected = "a function of ids and logits, or several"
        several = (given,) if callable(given) else tuple(() if given is None else iterator(name, given, expected))
        for processor in several:
            if not callable(processor):
                raise TypeError(f"logits_processor holds {shown(processor)}; expected callables of ids and logits")
        return several

    @cached_property
    def processes_scores(self) -> bool:
        """Return whether n-grams, bad words, DRY or logits processors change the scores."""
        return bool(self.no_repeat_ngram_size or self.bad_words or self.dry_multiplier or self.processors)

    @cached_property
    def adjusts_scores(self) -> bool:
        """Return whether biases, bans or penalties change the scores."""
        return bool(self.penalises or self.logit_bias or self.bans)

    @property
    def bans(self) -> bool:
        """Return whether ids are banned, or only some allowed."""
        return self.allowed_ids is not None or (self.banned_ids is not None and len(self.banned_ids) > 0)

    @property
    def filter_values(self) -> dict[str, Any]:
        """Return the options of the filters, as `bpe_llama.model.sampling.ordered` takes them."""
        names = (*FILTER_OPTIONS.values(), "xtc_threshold", "preset")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def filters(self) -> tuple[str, ...] | None:
        """Return the filters in their order; None where the sampler applies them itself."""
        if self.filter_order is not None:
            return tuple(self.filter_order)
        if not any(getattr(self, name) for name in FILTER_OPTIONS.values() if name not in _SAMPLER_FILTERS):
            return None
        return LLAMA_CPP_FILTERS if self.preset == "llama_cpp" else FILTERS

    @cached_property
    def prepares_scores(self) -> bool:
        """Return whether scores are changed, row by row, before the sampler draws from them."""
        return self.processes_scores or self.filters is not None or bool(self.mirostat)

    @cached_property
    def remaining_sampler_options(self) -> dict[str, Any]:
        """Return the sampler's options without those already applied to prepared scores."""
        if not self.prepares_scores:
            return self.sampler_options
        if self.filters is not None or self.mirostat:
            return {"temperature": 1.0, "top_p": 1.0}
        return {name: getattr(self, name) for name in _SAMPLER_FILTERS}

    @cached_property
    def remaining_sampler(self) -> Sampler:
        """Return the sampler of ``remaining_sampler_options``, which draws the next id."""
        return Sampler(**self.remaining_sampler_options) if self.prepares_scores else self.sampler

    @cached_property
    def sampling_key(self) -> str:
        """Return a key that is equal for options whose sampler draws from equal distributions."""
        return repr(self.remaining_sampler)

    @cached_property
    def uses_history(self) -> bool:
        """Return whether the sampler needs the earlier ids of a sequence, besides its scores."""
        return not self.prepares_scores and self.penalises


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(SamplingParams):
    """How to continue a prompt: `SamplingParams`, lengths, ends, seed and log-probabilities.

    Args:
        max_new_tokens: At most this many; fewer if the sequence ends or the context is full.
        min_new_tokens: No ending before this many, by an id or by a stop string.
        eos_id: The id or ids that end a sequence; None takes the model's (of its config and generation config), an
            empty tuple none.
        seed: The same seed gives the same ids, whatever else is in the batch. None draws a fresh one; the field then
            holds it.
        logprobs: Whether to record the log-probability of every new id, before any option acts.
        top_logprobs: How many of the most likely ids to record at each position, with their log-probabilities. Above 0
            records those of new ids too.
        prompt_logprobs: Whether to record those of the prompt too, and its most likely ids, from logits of all ids.
        constraint: A compiled grammar, which acts before all other options; `TextGenerator` compiles ``regex`` ...

    Raises:
        ValueError: If a value is out of range, naming option, value and range.
        TypeError: If one is of another type.

    Example:
        >>> GenerationOptions(temperature=0.0, max_new_tokens=8).seed
        0
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    eos_id: int | Sequence[int] | None = None
    seed: int | None = 0
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_new_tokens", self.max_new_tokens, 1)
        check_count("min_new_tokens", self.min_new_tokens, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}; expected 0 to max_new_tokens ({self.max_new_tokens})"
            )
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbits(32))
        else:
            check_whole("seed", self.seed, "an integer, or None for a fresh one")
            object.__setattr__(self, "seed", index(self.seed))
        check_count("top_logprobs", self.top_logprobs, 0)
        for name in ("logprobs", "prompt_logprobs"):
            boolean(name, getattr(self, name))
        if self.eos_id is not None:
            check_ending_ids(self.eos_id)
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise TypeError(f"constraint is {shown(self.constraint)}; expected a Constraint or None")

    @classmethod
    def for_model(
        cls, model: LlamaForCausalLM, prompt_length: int | None = None, **options: Unpack[GenerationKeywords]
    ) -> GenerationOptions:
        """Return these options, with the model's own defaults (``generation_config.json``) for those not given.

        Args:
            model: Whose defaults.
            prompt_length: Ids of the prompt, padding included, as transformers counts them. The file's ``max_length``
                less this is the default of ``max_new_tokens``, unless the file has ``max_new_tokens`` too. None leaves
                ``max_length`` out.
            **options: Those given.

        Raises:
            ValueError: As of the class; where a default is at fault, naming its file. If the prompt is as long as
                ``max_length``, and no ``max_new_tokens`` is given.

        Example:
            >>> from bpe_llama.model.config import LlamaConfig
            >>> from bpe_llama.model.generation_config import GenerationConfig
            >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            ...                      num_attention_heads=2)
            >>> model = LlamaForCausalLM(config)
            >>> model.generation_config = GenerationConfig({"do_sample": False})
            >>> GenerationOptions.for_model(model).temperature
            0.0
        """
        options = read_once(options)  # type: ignore[assignment]
        defaults = {name: o for name, o in model.generation_config.sampling_defaults.items() if name not in options}
        check_whole("mirostat", options.get("mirostat", 0), "0 (off), 1 or 2")
        order = () if options.get("mirostat") else options.get("filter_order")
        if order is not None:  # the caller says which filters act
            check_names("filter_order", order, FILTERS)
            acting = (*order, "temperature")
            defaults = {name: value for name, value in defaults.items() if name not in FILTERS or name in acting}
        most = model.generation_config.max_length
        if most is not None and prompt_length is not None and "max_new_tokens" not in options:
            if prompt_length >= most:
                raise ValueError(
                    f"the prompt has {prompt_length} ids, and max_length of the model's generation_config.json is "
                    f"{most}, prompt included; give max_new_tokens"
                )
            defaults["max_new_tokens"] = most - prompt_length
        if "min_new_tokens" in defaults:  # the caller's limit goes before the file's least
            limit = options.get("max_new_tokens", defaults.get("max_new_tokens", cls.max_new_tokens))
            defaults["min_new_tokens"] = min(defaults["min_new_tokens"], limit)
        check_keywords("generate", options, cls.__dataclass_fields__)
        try:
            return cls(**(defaults | dict(options)))
        except (ValueError, TypeError) as error:
            if defaults:
                cls(**options)  # raises if what the caller gave is at fault
                raise ValueError(f"a default of the model's generation_config.json: {error}") from None
            raise

    @cached_property
    def fast_forwards(self) -> bool:
        """Return whether forced ids need no sampling: no option may ban, count or record them."""
        changes = self.bans or self.processes_scores or self.mirostat
        return not (changes or self.logprobs or self.top_logprobs)

    def ending_ids(self, config: LlamaConfig, more: Sequence[int] = ()) -> tuple[int, ...]:
        """Return the ids that end a sequence, without any that the model cannot write.

        They are those asked for, or else ``more``, the generation config's, and the config's.
        """
        asked = (*more, *config.eos_token_ids) if self.eos_id is None else self.eos_id
        try:
            ids = [index(asked)]  # type: ignore[arg-type]  # NumPy's and torch's integers too
        except TypeError:
            ids = [index(i) for i in asked]  # type: ignore[union-attr]
        return tuple(dict.fromkeys(i for i in ids if 0 <= i < config.vocab_size))


DRAWING_OPTIONS = {
    *_SAMPLER_FILTERS,
    *FILTER_OPTIONS.values(),
    *("seed", "filter_order", "xtc_threshold", "mirostat", "mirostat_tau", "mirostat_eta"),
}
"""Options that only matter where ids are drawn, not where the most likely are taken."""
