"""What a request asks for, and what has become of it so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import index
from typing import Any

from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.sampling import Sampler


@dataclass(frozen=True)
class GenerationOptions:
    """How to continue a prompt.

    Args:
        max_new_tokens: At most this many; fewer if the sequence ends or the context is full.
        min_new_tokens: No ending before this many.
        temperature: 0 takes the likeliest id each time.
        top_k: Draw from this many of the likeliest; 0 is all.
        top_p: Draw from the likeliest whose mass reaches this.
        min_p: Draw from those at least this likely, relative to the likeliest.
        repetition_penalty: Divides the score of ids already present (Keskar et al. 2019, arXiv:1909.05858).
        presence_penalty: Subtracted from the score of ids already present.
        frequency_penalty: Subtracted once for each time the id is present.
        typical_p: Draw from the ids whose surprise is nearest to the entropy, until their mass reaches this
            (Meister et al. 2022, arXiv:2202.00666).
        logit_bias: Added to the scores of these ids.
        banned_ids: Never drawn.
        allowed_ids: If given, only these are drawn; a sequence ends early only if an id that ends it is among them.
        preset: Whose boundaries and order of filters: "exact", "meta", "transformers" or "llama_cpp", as of
            `bpe_llama.Sampler`.
        eos_id: The id or ids that end a sequence; None takes the model's (those of its config and generation config),
            an empty tuple none.
        seed: The same seed gives the same ids, whatever else is in the batch.
        logprobs: Whether to keep the log-probability of every new id, before any of the above acts on it.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If one is of another type.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    typical_p: float = 1.0
    logit_bias: dict[int, float] | None = None
    banned_ids: Sequence[int] | None = None
    allowed_ids: Sequence[int] | None = None
    preset: str = "exact"
    eos_id: int | Sequence[int] | None = None
    seed: int = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}; expected 0 to max_new_tokens ({self.max_new_tokens})"
            )
        _ = self.sampler  # refuses what is out of range, before any work is done

    @property
    def sampling(self) -> dict[str, Any]:
        """Return the part that turns logits into a distribution, as `Sampler` and `sample_logits` name it."""
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "typical_p": self.typical_p,
            "logit_bias": self.logit_bias,
            "banned_ids": self.banned_ids,
            "allowed_ids": self.allowed_ids,
            "preset": self.preset,
        }

    @cached_property
    def sampler(self) -> Sampler:
        """Return the sampler of these options."""
        return Sampler(**self.sampling)

    @cached_property
    def draws_as(self) -> str:
        """Return a name shared by all options whose logits become the same distribution."""
        return repr(self.sampler)

    @classmethod
    def for_model(cls, model: LlamaForCausalLM, **options: Any) -> GenerationOptions:
        """Return these options, with the model's own defaults (``generation_config.json``) for those not given.

        Raises:
            ValueError: As of the class; where a default is at fault, naming its file.

        Example:
            >>> from bpe_llama.model.config import LlamaConfig
            >>> from bpe_llama.model.generation_config import GenerationConfig
            >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            ...                      num_attention_heads=2)
            >>> model = LlamaForCausalLM(config)
            >>> model.generation_config = GenerationConfig({"do_sample": False})
            >>> GenerationOptions.for_model(model).temperature, GenerationOptions.for_model(model, temperature=0.5).temperature
            (0.0, 0.5)
        """
        defaults = {name: o for name, o in model.generation_config.sampling_defaults.items() if name not in options}
        if "min_new_tokens" in defaults:  # the caller's limit goes before the file's least
            limit = options.get("max_new_tokens", defaults.get("max_new_tokens", cls.max_new_tokens))
            defaults["min_new_tokens"] = min(defaults["min_new_tokens"], limit)
        try:
            return cls(**{**defaults, **options})
        except (ValueError, TypeError) as error:
            if defaults:
                cls(**options)  # raises if what the caller gave is at fault
                raise ValueError(f"a default of the model's generation_config.json: {error}") from None
            raise

    def ending_ids(self, config: LlamaConfig, more: Sequence[int] = ()) -> tuple[int, ...]:
        """Return the ids that end a sequence, without any that the model cannot write.

        They are those asked for, or else the config's and ``more``, the generation config's.
        """
        asked = (*config.eos_token_ids, *more) if self.eos_id is None else self.eos_id
        try:
            ids = [index(asked)]  # type: ignore[arg-type]  # NumPy's and torch's integers too
        except TypeError:
            ids = [index(i) for i in asked]  # type: ignore[union-attr]
        return tuple(dict.fromkeys(i for i in ids if 0 <= i < config.vocab_size))

    @property
    def looks_back(self) -> bool:
        """Return whether a choice depends on the ids before it by more than the logits."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@dataclass(eq=False)
class Sample:
    """One sequence being generated: its prompt and, growing, what follows."""

    prompt: list[int]
    options: GenerationOptions
    eos_ids: tuple[int, ...]
    new_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    unread: int = 0
    """How many of the prompt's ids are still to be read, by the coming steps."""
    reused: int = 0
    """How many of the prompt's ids needed no work, because the slot still held them from an earlier sequence."""
    prefill_seconds: float = 0.0
    """From joining to the first new id."""
    decode_seconds: float = 0.0
    """Spent in steps since, those of its neighbours included."""
    finish: str | None = None
    """Why it ended: ``"eos"``, ``"length"`` (max_new_tokens), ``"context"``, ``"stop"`` (by `Engine.leave`)."""

    @property
    def ids(self) -> list[int]:
        """Return prompt and continuation."""
        return self.prompt + self.new_ids
