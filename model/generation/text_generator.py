"""A tokenizer and a model together: text in, text out."""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import torch

from bpe_llama._arguments import check_surrogates, integer, iterator, reusable, string, wrong
from bpe_llama._core import shown
from bpe_llama.model.generation.beam import beam_search
from bpe_llama.model.generation.engine import Engine
from bpe_llama.model.generation.generate import search_draws, search_options, with_do_sample
from bpe_llama.model.generation.prompts import check_vocabulary, whole_ids
from bpe_llama.model.generation.structured import structured_options
from bpe_llama.model.generation.text_options import OF_TEXT, TextOptions, check_keywords, check_prompt, stop_strings
from bpe_llama.model.generation.text_request import TextRequest
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.pretrained import check_model
from bpe_llama.model.sampling.checks import read_once
from bpe_llama.model.sampling.params import GenerationOptions
from bpe_llama.model.sampling.sequence import Sequence

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bpe_llama.model.sampling.keywords import BatchKeywords, TextAndSearchKeywords, TextKeywords
    from bpe_llama.tokenizer import Tokenizer


Prompt: TypeAlias = "str | abc.Sequence[int]"
Prompts: TypeAlias = "abc.Sequence[Prompt]"
MOST_ANSWERS = 1 << 20
"""The most answers of each prompt of a batch: each takes some kilobytes before it begins."""
_SEARCH = ("num_beams", "length_penalty", "early_stopping", "do_sample")


class TextGenerator:
    """Continues text.

    The result is the continuation, without the prompt. Text that looks like a special token is ordinary text unless
    ``allowed_special`` says otherwise, so a user's message cannot forge one.

    The cache of the last prompt serves as a prefix cache for the next one (the next turn of a conversation, the same
    instructions again). Streams that run at once have a cache each. Replaced weights and in-place changes of weights
    empty it, except changes through ``weight.data``, which leave no trace: after one, pass ``reuse=False`` once.

    Args:
        model: Weights.
        tokenizer: Its vocabulary. A model may have more ids than the tokenizer; they decode to no text. Added tokens,
            such as padding, may have ids beyond the model's; a prompt that holds one is refused.

    Warns:
        UserWarning: If added tokens have ids beyond the model's.

    Raises:
        TypeError: If one of them is something else, as where they are swapped.
        ValueError: If other tokens do.
    """

    def __init__(self, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
        check_model(model)
        if not hasattr(tokenizer, "decode_stream"):
            raise TypeError(wrong("tokenizer", tokenizer, "a Tokenizer"))
        check_vocabulary(tokenizer, model.config.vocab_size)
        self.model = model
        self.tokenizer = tokenizer
        self.last: Sequence | None = None
        """The sequence that started last: its ids, its seed (in ``options``), log-probabilities and timings."""
        self.sequences: list[Sequence] = []
        """All sequences of the last call, in the order of its answers."""
        self._text_options = TextOptions(tokenizer, model.config.vocab_size)
        self._idle: list[Engine] = []
        """The engine of the last stream; empty while it runs."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the ids that end a text: the model's, and those that the tokenizer's files name."""
        return tuple(dict.fromkeys((*self.model.end_ids, *sorted(self.tokenizer.end_ids))))

    def encode(self, text: str, bos: bool | None = None, allowed_special: Iterable[str] | str = ()) -> list[int]:
        """Return the ids of a prompt: those of ``tokenizer(text)``, what its files put around a text included.

        Args:
            text: The prompt.
            bos: True begins with the beginning-of-text id and adds nothing else, False adds nothing. None adds what
                the tokenizer's files say, and the beginning-of-text id to an empty prompt; a prompt that spells it
                itself, as text by a chat template may, gets no second one.
            allowed_special: As of ``Tokenizer.encode``.

        Raises:
            TypeError: If the prompt is no `str`.
            ValueError: If it holds a lone surrogate, which no model has seen: `Tokenizer.encode` takes it for U+FFFD.

        Example:
            >>> generator.encode("Once upon a time")  # doctest: +SKIP
        """
        check_surrogates("the prompt", string("text", text))
        begin = self.tokenizer.bos_id
        allowed_special = reusable("allowed_special", allowed_special)
        if bos is not None:
            return whole_ids(self.tokenizer.encode(text, bos=bos, allowed_special=allowed_special))
        ids = whole_ids(self.tokenizer(text, allowed_special=allowed_special)["input_ids"])
        if begin is not None and ids[:2] == [begin, begin]:
            spelled = self.tokenizer.encode(text, allowed_special=allowed_special)
            return ids[1:] if spelled[:1] == [begin] else ids
        if not ids:
            begin = self.model.generation_config.bos_token_id if begin is None else begin
            return [] if begin is None else [begin]
        return ids

    @overload
    def generate(self, prompt: Prompt, *, n: None = None, **options: Unpack[TextAndSearchKeywords]) -> str: ...
    @overload
    def generate(self, prompt: Prompt, *, n: int, **options: Unpack[TextAndSearchKeywords]) -> list[str]: ...
    def generate(
        self, prompt: Prompt, *, n: int | None = None, **options: Unpack[TextAndSearchKeywords]
    ) -> str | list[str]:
        """Return the continuation of one prompt; arguments and errors are those of `stream`.

        ``num_beams``, ``length_penalty``, ``early_stopping`` and ``do_sample`` are those of
        `bpe_llama.model.generation.generate.generate`. In a beam search a stop string ends a beam, as in transformers.

        Args:
            prompt: To be continued.
            n: How many answers: a list of as many, with the seeds ``seed``, ``seed + 1`` ...; the best of a search.
            **options: As of `stream`.
        """
        given = read_once(options)
        if integer("num_beams", given.get("num_beams", 1), 1) != 1:
            return self._search(prompt, n, given)
        given = with_do_sample(self.model, given, given.pop("do_sample", None))
        given = {name: value for name, value in given.items() if name not in _SEARCH}
        if n is None:
            return "".join(self.stream(prompt, **given))
        n = integer("n", n, 1)
        first = self.request(prompt, given)
        engine = Engine(self.model, n, first.room(self.model))  # raises if there is no memory for so many
        requests = [first, *(self.request(prompt, given) for _ in range(n - 1))]
        self.sequences = engine.prefill([requests[0].prompt], [requests[0].options], copies=n)
        self.last = self.sequences[-1]
        for request, sequence in zip(requests, self.sequences, strict=True):
            request.sequence = sequence
            request.read(engine)
        while not all(request.done for request in requests):
            engine.step()
            for request in requests:
                request.read(engine)
        return ["".join(request.parts) for request in requests]

    def _search(self, prompt: Prompt, n: int | None, options: dict[str, Any]) -> str | list[str]:
        """Return the best answers of a beam search."""
        given = {name: options.pop(name) for name in _SEARCH if name in options}
        do_sample = given.get("do_sample")
        options = with_do_sample(self.model, options, do_sample)
        search = self.model.generation_config.search_options(**given)
        asked = self._generation_options(options)
        search["do_sample"] = search_draws(self.model, asked, do_sample)
        search_options(self.model, asked, search["do_sample"])
        if n is not None and not 1 <= integer("n", n) <= search["num_beams"]:
            raise ValueError(f"n is {n}; expected 1 to num_beams ({search['num_beams']})")
        request = self.request(prompt, options)
        found = beam_search(self.model, request.prompt, request.options, stopped=request.stopped, **search)
        if len(found) < (n or 1):
            raise ValueError(f"n is {n}, but there are only {len(found)} answers")
        answers, self.sequences = [], []
        for continuation in found[: n or 1]:
            ends = request.options.ending_ids(self.model.config)
            request.sequence = Sequence(request.prompt, request.options, ends, continuation.new_ids)
            request.sequence.finish_reason = "stop" if continuation.new_ids[-1] in ends else "length"
            request.read()
            answers.append("".join(request.parts))
            self.sequences.append(request.sequence)
            request = self.request(prompt, options)
        self.last = self.sequences[0]
        return answers[0] if n is None else answers

    @overload
    def generate_batch(
        self, prompts: Prompts, *, slots: int = 16, n: None = None, **options: Unpack[BatchKeywords]
    ) -> list[str]: ...
    @overload
    def generate_batch(
        self, prompts: Prompts, *, slots: int = 16, n: int, **options: Unpack[BatchKeywords]
    ) -> list[list[str]]: ...
    def generate_batch(
        self, prompts: Prompts, *, slots: int = 16, n: int | None = None, **options: Unpack[BatchKeywords]
    ) -> list[str] | list[list[str]]:
        """Return the continuation of each prompt, in order; each is what `generate` alone would have given.

        Args:
            prompts: Texts or ids of any lengths. A waiting one starts as soon as a slot is free.
            slots: Sequences that run at once.
            n: How many answers of each prompt: a list of as many, as `generate` returns.
            **options: As of `stream`; ``seed`` may be a list with one for each prompt. With None each prompt draws its
                own.
        """
        prompts = list(iterator("prompts", prompts, "a list of texts or of ids; generate takes one prompt"))
        slots = integer("slots", slots, 1)
        given = read_once(options)
        seeds = given.get("seed", 0)
        if isinstance(seeds, abc.Sequence) and not isinstance(seeds, str):
            if len(seeds) != len(prompts):
                raise ValueError(f"seed holds {len(seeds)} numbers for {len(prompts)} prompts; expected one for each")
            each = [given | {"seed": seed} for seed in seeds]
        else:
            each = [given] * len(prompts)
        copies = 1 if n is None else integer("n", n, 1)
        if copies > MOST_ANSWERS:
            raise ValueError(f"n is {copies}; expected at most {MOST_ANSWERS:,}")
        if n is not None:
            first = [self.options(**chosen).seed or 0 for chosen in each]
            each = [each[place] | {"seed": seed + copy} for place, seed in enumerate(first) for copy in range(copies)]
        requests = [
            self.request(prompts[place // copies], chosen, f"prompts[{place // copies}]")
            for place, chosen in enumerate(each)
        ]
        self.sequences = []
        if not requests:
            return []
        engine = Engine(self.model, min(slots, len(requests)), max(request.room(self.model) for request in requests))
        for request in requests:
            request.sequence = engine.add_request(request.prompt, request.options)
            self.sequences.append(request.sequence)
        by_sequence = dict(zip(self.sequences, requests, strict=True))
        while engine.has_unfinished_requests():
            for sequence in engine.step():
                by_sequence[sequence].read(engine)
        self.last = self.sequences[-1]
        texts = ["".join(request.parts) for request in requests]
        return texts if n is None else [texts[start : start + copies] for start in range(0, len(texts), copies)]

    def stream(self, prompt: Prompt, **options: Unpack[TextKeywords]) -> Iterator[str]:
        """Yield the continuation of one prompt, piece by piece, as it is generated.

        Every piece is valid text: bytes of an incomplete character are held back, and so is the beginning of a possible
        stop string.

        Args:
            prompt: To be continued; an empty one needs a tokenizer with a beginning-of-text id. Ids are taken as they
                are, and their continuation is decoded as a text of its own, as an answer is: a tokenizer that puts a
                space before a text drops the first one.
            **options: Those of `GenerationOptions`, of which ``bad_words`` and ``dry_sequence_breakers`` may hold
                strings; and: ``stop``, a string or several, by default the generation config's, that end the text and
                are not part of it, nor looked for in the text of the first ``min_new_tokens``; ``bos``, whether to
                begin with the tokenizer's beginning-of-text id (by default as `encode` says); ``allowed_special``, as
                of ``Tokenizer.encode``; one option of `bpe_llama.model.generation.structured`; ``reuse``, whether to
                use the prefix cache: by default for float32 weights only. With fewer bits, rounding of cached keys
                depends on how the text was split into passes, so the same seed need not give the same text;
                ``skip_special_tokens``, whether the text is without special tokens: by default unless a grammar
                or a stop string names one.

        Raises:
            ValueError: If an option is out of range, or the prompt is empty or leaves no room in the context.
            TypeError: If an id of the prompt is no int.
        """
        request = self.request(prompt, read_once(options))
        reuse = options.get("reuse")
        engine = self._engine(request.room(self.model))
        if not (self.model.dtype == torch.float32 if reuse is None else reuse):
            engine.reset_prefix_cache()
        try:
            (request.sequence,) = engine.prefill([request.prompt], [request.options])
            self.last, self.sequences = request.sequence, [request.sequence]
            while True:
                request.read(engine)
                yield from request.take()
                if request.done:
                    break
                engine.step()
        finally:
            if request.sequence is not None and not request.sequence.finish_reason:  # the caller closed the stream
                engine.abort(request.sequence)
            self._idle[:] = [engine]

    def options(self, prompt_length: int | None = None, **options: Unpack[TextKeywords]) -> GenerationOptions:
        """Return the options that a call with these would generate by: the model's own for those not given.

        ``prompt_length`` is as of `GenerationOptions.for_model`.

        Raises:
            ValueError: If one is out of range.
        """
        return GenerationOptions.for_model(self.model, prompt_length, **self._generation_options(dict(options)))

    def stops(self, options: abc.Mapping[str, Any]) -> tuple[str, ...]:
        """Return a call's stop strings: by default the generation config's, or none where a grammar ends the text."""
        by_default = () if _is_constrained(options) else self.model.generation_config.stop_strings
        return stop_strings(by_default if options.get("stop") is None else options["stop"])

    def skips_special_tokens(self, options: abc.Mapping[str, Any]) -> bool:
        """Return whether a call's text is without special tokens: by default unless a grammar or stop string names one.

        Raises:
            ValueError: If it is to be without them, but a stop string holds one, which would never be found.
        """
        given, stops, tokens = options.get("skip_special_tokens"), self.stops(options), self.tokenizer.special_tokens
        held = next(((stop, token) for stop in stops for token in tokens if token in stop), None)
        if given and held:
            raise ValueError(
                f"skip_special_tokens is True, but the stop string {shown(held[0])} holds the special token "
                f"{shown(held[1])}; expected False or None"
            )
        return held is None and not _is_constrained(options) if given is None else bool(given)

    def _generation_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return those of `GenerationOptions`, as ids, with all ids that end a text."""
        check_keywords(options)
        options = {name: value for name, value in options.items() if name not in OF_TEXT}
        if options.get("eos_id") is None:
            options["eos_id"] = self.end_ids
        return self._text_options.to_ids(options)

    def _engine(self, room: int) -> Engine:
        """Return the idle engine, or a new one, with room for so many tokens."""
        try:
            engine = self._idle.pop()  # nobody else can take it now
        except IndexError:
            return Engine(self.model, 1, room)
        cache = engine.cache
        if (engine.model, cache.dtype, cache.store.device) != (self.model, self.model.dtype, self.model.device):
            return Engine(self.model, 1, room)
        if room > engine.cache.capacity:
            engine.reserve(max(room, 2 * engine.cache.capacity))
        return engine

    def request(
        self, prompt: Prompt, options: dict[str, Any], name: str = "the prompt", *, continues: bool = False
    ) -> TextRequest:
        """Return a prompt with its options, checked, as `stream` would run it; errors call the prompt ``name``.

        ``continues`` decodes the continuation of ids as that of a text, as where a chat continues its last message.
        """
        of_ids = self._generation_options(options)
        bos, allowed = options.get("bos"), options.get("allowed_special", ())
        ids = self.encode(prompt, bos, allowed) if isinstance(prompt, str) else whole_ids(prompt, name)
        if not ids:
            raise ValueError(
                f"{name} is empty, and the tokenizer has no beginning-of-text id to start from; give a text"
            )
        check_prompt(ids, name, self.model.config, self.tokenizer)
        stops, skip = self.stops(options), self.skips_special_tokens(options)
        options_of_ids = GenerationOptions.for_model(self.model, len(ids), **of_ids)
        before: abc.Sequence[int] = ()
        # What continues a text keeps its first space, which a grammar counts in any case.
        if continues or (isinstance(prompt, str) and prompt) or options_of_ids.constraint:
            before = options_of_ids.constraint.before if options_of_ids.constraint else ids
        return TextRequest(ids, options_of_ids, stops, self.tokenizer, skip, before)


def _is_constrained(options: abc.Mapping[str, Any]) -> bool:
    """Return whether a grammar decides which tokens, special ones too, a text may have."""
    return options.get("constraint") is not None or bool(structured_options(options))
