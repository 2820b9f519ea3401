"""A tokenizer and a model together: text in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, overload

import torch

from bpe_llama.model.generation.beam import beam_search
from bpe_llama.model.generation.generate import (
    Engine,
    GenerationOptions,
    Sample,
    search_draws,
    search_options,
    with_do_sample,
)
from bpe_llama.model.generation.prompts import check_vocabulary, whole_ids
from bpe_llama.model.llama import LlamaForCausalLM

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer


_SEARCH = ("num_beams", "length_penalty", "early_stopping", "do_sample")
_OURS = ("stop", "bos", "allowed_special", "reuse")
_DRY_BREAKERS = ("\n", ":", '"', "*")
"""Where llama.cpp lets a repetition end."""


class TextGenerator:
    """Continues text.

    What comes back is the continuation, without the prompt. Text that looks like a special token is ordinary text
    unless ``allowed_special`` says otherwise, so a user's message cannot forge one.

    The cache of the last prompt is kept, so that one that begins alike (the next turn of a conversation, the same
    instructions again) is read only from where they part. Streams that run at once have a cache each. Weights that are
    replaced or changed in place are noticed, except through ``weight.data``, which leaves no trace: after that, ask
    once with ``reuse=False``.

    Args:
        model: Weights.
        tokenizer: Its vocabulary. A model may have more ids, which stand for no text; added tokens, such as padding,
            may lie beyond the model's ids, and are refused where a prompt holds one.

    Warns:
        UserWarning: If added tokens lie beyond the model's ids.

    Raises:
        ValueError: If other tokens do.
    """

    def __init__(self, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
        check_vocabulary(tokenizer, model.config.vocab_size)
        self.model = model
        self.tokenizer = tokenizer
        self.last: Sample | None = None
        """The sequence that started last: its ids, its seed (in ``options``), log-probabilities and timings."""
        self.samples: list[Sample] = []
        """All sequences of the last call, in the order of its answers."""
        self._token_bytes: list[bytes] | None = None
        self._idle: list[Engine] = []
        """The engine that served last, or none while it serves."""

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

        Example:
            >>> generator.encode("Once upon a time")  # doctest: +SKIP
        """
        begin = self.tokenizer.bos_id
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
    def generate(self, prompt: str | Sequence[int], *, n: None = None, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: str | Sequence[int], *, n: int, **options: Any) -> list[str]: ...
    def generate(self, prompt: str | Sequence[int], *, n: int | None = None, **options: Any) -> str | list[str]:
        """Return the continuation of one prompt; arguments and errors are those of `stream`.

        ``num_beams``, ``length_penalty``, ``early_stopping`` and ``do_sample`` search for the likeliest instead of
        drawing, as in `bpe_llama.model.generation.generate.generate`.

        Args:
            prompt: To be continued.
            n: How many answers: a list of as many, with the seeds ``seed``, ``seed + 1`` ...; of a search the best.
            **options: As of `stream`.
        """
        if options.get("num_beams", 1) != 1:
            return self._search(prompt, n, options)
        options = with_do_sample(self.model, options, options.pop("do_sample", None))
        options = {name: value for name, value in options.items() if name not in _SEARCH}
        if n is None:
            return "".join(self.stream(prompt, **options))
        if n < 1:
            raise ValueError(f"n is {n}; expected at least 1")
        writers = [self._writer(prompt, options) for _ in range(n)]
        engine = Engine(self.model, n, writers[0].room(self.model))
        self.samples = engine.join([writers[0].prompt], [writers[0].options], copies=n)
        self.last = self.samples[-1]
        for writer, sample in zip(writers, self.samples, strict=True):
            writer.sample = sample
            writer.read(engine)
        while not all(writer.done for writer in writers):
            engine.step()
            for writer in writers:
                writer.read(engine)
        return ["".join(writer.parts) for writer in writers]

    def _search(self, prompt: str | Sequence[int], n: int | None, options: dict[str, Any]) -> str | list[str]:
        """Return the best answers of a beam search."""
        given = {name: options.pop(name) for name in _SEARCH if name in options}
        do_sample = given.get("do_sample")
        options = with_do_sample(self.model, options, do_sample)
        search = self.model.generation_config.search_options(**given)
        asked = self._of_ids(options)[0]
        search["do_sample"] = search_draws(self.model, asked, do_sample)
        search_options(self.model, asked, search["do_sample"])
        if not 1 <= (n or 1) <= search["num_beams"]:
            raise ValueError(f"n is {n}; expected 1 to num_beams ({search['num_beams']})")
        writer = self._writer(prompt, options)
        found = beam_search(self.model, writer.prompt, writer.options, **search)
        if len(found) < (n or 1):
            raise ValueError(f"n is {n}, but there are only {len(found)} answers")
        answers, self.samples = [], []
        for continuation in found[: n or 1]:
            ends = writer.options.ending_ids(self.model.config)
            writer.sample = Sample(writer.prompt, writer.options, ends, continuation.new_ids)
            writer.sample.finish = "eos" if continuation.new_ids[-1] in ends else "length"
            writer.read()
            answers.append("".join(writer.parts))
            self.samples.append(writer.sample)
            writer = self._writer(prompt, options)
        self.last = self.samples[0]
        return answers[0] if n is None else answers

    @overload
    def generate_batch(
        self, prompts: Sequence[str], *, slots: int = 16, n: None = None, **options: Any
    ) -> list[str]: ...
    @overload
    def generate_batch(self, prompts: Sequence[str], *, slots: int = 16, n: int, **options: Any) -> list[list[str]]: ...
    def generate_batch(
        self, prompts: Sequence[str], *, slots: int = 16, n: int | None = None, **options: Any
    ) -> list[str] | list[list[str]]:
        """Return the continuation of each prompt, in order; each is what `generate` alone would have given.

        Args:
            prompts: Of any lengths; as many as there are slots run at once, the next joining as one ends.
            slots: Sequences that run at once.
            n: How many answers of each: a list of as many, as `generate` gives.
            **options: As of `stream`; ``seed`` may be a list with one for each prompt. With None each draws its own.
        """
        if slots < 1:
            raise ValueError(f"slots is {slots}; expected at least 1")
        seeds = options.get("seed", 0)
        if isinstance(seeds, Sequence):
            if len(seeds) != len(prompts):
                raise ValueError(f"seed holds {len(seeds)} numbers for {len(prompts)} prompts; expected one for each")
            each = [options | {"seed": seed} for seed in seeds]
        else:
            each = [options] * len(prompts)
        if n is not None:
            if n < 1:
                raise ValueError(f"n is {n}; expected at least 1")
            first = [self.options(**chosen).seed or 0 for chosen in each]
            seeds = [seed + copy for seed in first for copy in range(n)]
            found = self.generate_batch(
                [p for p in prompts for _ in range(n)], slots=slots, **options | {"seed": seeds}
            )
            return [found[start : start + n] for start in range(0, len(found), n)]
        writers = [self._writer(prompt, chosen) for prompt, chosen in zip(prompts, each, strict=True)]
        self.samples = []
        if not writers:
            return []
        room = max(writer.room(self.model) for writer in writers)
        engine = Engine(self.model, min(slots, len(writers)), room)
        waiting = list(reversed(writers))
        running: list[_Writer] = []
        while waiting or running:
            free = engine.cache.batch_size - len(running)
            joining = [waiting.pop() for _ in range(min(free, len(waiting)))]
            entered = engine.enter([writer.prompt for writer in joining], [writer.options for writer in joining])
            for writer, sample in zip(joining, entered, strict=True):
                writer.sample = sample
            running += joining
            engine.step()
            for writer in running:
                writer.read(engine)
            running = [writer for writer in running if not writer.done]
        self.samples = [writer.sample for writer in writers if writer.sample is not None]
        self.last = self.samples[-1]
        return ["".join(writer.parts) for writer in writers]

    def stream(self, prompt: str | Sequence[int], **options: Any) -> Iterator[str]:
        """Yield the continuation of one prompt, piece by piece, as it is found.

        Every piece is valid text: bytes of an unfinished character are held back, and so is what may become a stop
        string, until it is known.

        Args:
            prompt: To be continued; an empty one needs a tokenizer with a beginning-of-text id. Ids are taken as they
                are, and what follows them is a text of its own, as an answer is: where the tokenizer puts a space
                before a text, its first one is dropped.
            **options: Those of `GenerationOptions`, of which ``bad_words`` and ``dry_sequence_breakers`` may hold
                strings; and: ``stop``, a string or several, by default the generation config's, that end the text and
                are not part of it, nor looked for in what the first ``min_new_tokens`` wrote; ``bos``, whether to begin
                with the tokenizer's beginning-of-text id (by default as `encode` says); ``allowed_special``, as of
                ``Tokenizer.encode``; ``reuse``, whether to begin from what is cached of an earlier prompt that began
                alike: by default where weights are float32. In fewer bits what is cached differs by rounding with the
                way the text was cut, so the same seed need not give the same text.

        Raises:
            ValueError: If an option is out of range, or the prompt is empty or leaves no room in the context.
            TypeError: If an id of the prompt is no int.
        """
        options = dict(options)
        reuse = options.pop("reuse", None)
        writer = self._writer(prompt, options)
        engine = self._engine(writer.room(self.model))
        if not (self.model.dtype == torch.float32 if reuse is None else reuse):
            engine.forget()
        try:
            (writer.sample,) = engine.join([writer.prompt], [writer.options])
            self.last, self.samples = writer.sample, [writer.sample]
            while True:
                writer.read(engine)
                yield from writer.take()
                if writer.done:
                    break
                engine.step()
        finally:
            if writer.sample is not None and not writer.sample.finish:  # its reader has gone
                engine.leave(writer.sample)
            self._idle[:] = [engine]

    def options(self, prompt_length: int | None = None, **options: Any) -> GenerationOptions:
        """Return the options that a call with these would generate by: the model's own for those not given.

        ``prompt_length`` is as of `GenerationOptions.for_model`.

        Raises:
            ValueError: If one is out of range.
        """
        return GenerationOptions.for_model(self.model, prompt_length, **self._of_ids(options)[0])

    def _of_ids(self, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the options of `GenerationOptions`, with ids for words and breakers, and those of `_OURS`."""
        ours = {name: value for name, value in options.items() if name in _OURS}
        options = {name: value for name, value in options.items() if name not in _OURS}
        if "n" in options:
            raise ValueError(f"n is {options['n']!r}, but a stream is one answer; generate and generate_batch take it")
        if options.get("eos_id") is None:
            options["eos_id"] = self.end_ids
        if options.get("bad_words") is not None:
            if isinstance(options["bad_words"], str):
                raise TypeError(f"bad_words is {options['bad_words']!r}; expected a list of words")
            words = [self._ids_of_word(word) if isinstance(word, str) else [word] for word in options["bad_words"]]
            options["bad_words"] = [ids for several in words for ids in several]
        if options.get("dry_multiplier"):
            given = options.get("dry_sequence_breakers")
            given = _DRY_BREAKERS if given is None else (given,) if isinstance(given, str) else given
            breakers = [self._ids_containing(part) if isinstance(part, str) else [part] for part in given]
            options["dry_sequence_breakers"] = [ids for several in breakers for ids in several]
        return options, ours

    def _ids_of_word(self, word: str) -> list[list[int]]:
        """Return the ids of a word at the beginning of a text and, if they differ, those after a space.

        Source: ``update_from_tokenizer`` of vLLM's sampling params.
        """
        if not word.strip():
            raise ValueError(f"bad_words holds {word!r}; expected words")
        first, within = (whole_ids(self.tokenizer.encode(space + word.lstrip())) for space in ("", " "))
        return [first, within] if within[0] != first[0] and len(within) == len(first) else [first]

    def _ids_containing(self, text: str) -> list[list[int]]:
        """Return the ids whose text contains a string, each as a sequence, and the ids of the string itself."""
        if not text:
            raise ValueError("dry_sequence_breakers holds an empty string; it would let no repetition begin")
        wanted = text.encode()
        if self._token_bytes is None:
            pieces = (self._bytes_of(token_id) for token_id in range(self.tokenizer.vocab_size))
            self._token_bytes = list(pieces)
        holding = [[token_id] for token_id, piece in enumerate(self._token_bytes) if wanted in piece]
        spelled = whole_ids(self.tokenizer.encode(text))
        return holding if len(spelled) == 1 else [*holding, spelled]

    def _bytes_of(self, token_id: int) -> bytes:
        """Return what an id stands for, nothing where there is no such token."""
        try:
            return bytes(self.tokenizer.decode_bytes([token_id]))
        except KeyError:
            return b""

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
            engine.make_room(max(room, 2 * engine.cache.capacity))
        return engine

    def _writer(self, prompt: str | Sequence[int], options: dict[str, Any]) -> _Writer:
        options, ours = self._of_ids(options)
        stop, bos, allowed = ours.get("stop"), ours.get("bos"), ours.get("allowed_special", ())
        stop = self.model.generation_config.stop_strings if stop is None else stop
        ids = self.encode(prompt, bos, allowed) if isinstance(prompt, str) else whole_ids(prompt)
        if not ids:
            raise ValueError("the prompt is empty, and the tokenizer has no beginning-of-text id to start from")
        vocab_size = self.model.config.vocab_size
        beyond = next((new_id for new_id in ids if vocab_size <= new_id < self.tokenizer.vocab_size), None)
        if beyond is not None:
            token = self.tokenizer.id_to_token(beyond)
            raise ValueError(f"the prompt holds {token!r}, whose id {beyond} is beyond the model's {vocab_size:,}")
        stops = tuple(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else (stop,)
        if not all(isinstance(each, str) for each in stops):
            raise TypeError(f"stop is {stop!r}; expected a string or several")
        if "" in stops:
            raise ValueError("a stop string is empty; it would end every text before it begins")
        decoder = self.tokenizer.decode_stream()
        if isinstance(prompt, str) and prompt:  # its continuation is no beginning, whose space would be dropped
            for known in ids:
                decoder.push(known)
        return _Writer(ids, GenerationOptions.for_model(self.model, len(ids), **options), stops, decoder)


class _Writer:
    """Turns one sequence's new ids into text, watching for its stop strings."""

    def __init__(self, prompt: list[int], options: GenerationOptions, stops: tuple[str, ...], decoder: Any) -> None:
        self.prompt = prompt
        self.options = options
        self.sample: Sample | None = None
        self.parts: list[str] = []
        self.done = False
        self._stops = stops
        self._decoder = decoder
        self._held = ""
        self._read = 0
        self._early = 0
        """Characters of the held text that come from the first ``min_new_tokens`` tokens."""
        self._taken = 0

    def room(self, model: LlamaForCausalLM) -> int:
        """Return the tokens its slot must hold."""
        return min(model.config.context_length, len(self.prompt) + self.options.max_new_tokens)

    def read(self, engine: Engine | None = None) -> None:
        """Decode the ids that have come; end the sequence in the engine if a stop string is complete."""
        if self.sample is None or self.done:
            return
        text = self._held
        for count, new_id in enumerate(self.sample.new_ids[self._read :], start=self._read + 1):
            if new_id not in self.sample.eos_ids:
                with suppress(KeyError):  # models have more ids than tokens, for their matrices to be of round sizes
                    text += self._decoder.push(new_id)
            if count <= self.options.min_new_tokens:
                self._early = len(text)
        self._read = len(self.sample.new_ids)
        if self.sample.finish:
            text += self._decoder.flush()
        # A stop string counts only if it ends after the text of the first min_new_tokens tokens.
        places = (text.find(stop, max(self._early - len(stop) + 1, 0)) for stop in self._stops)
        found = [place for place in places if place >= 0]
        if found:
            text = text[: min(found)]
            if engine and not self.sample.finish:
                engine.leave(self.sample)
        self.done = bool(found or self.sample.finish)
        keep = 0 if self.done else _may_become_stop(text, self._stops)
        self._held = text[len(text) - keep :]
        text = text[: len(text) - keep]
        self._early = max(self._early - len(text), 0)
        if text:
            self.parts.append(text)

    def take(self) -> list[str]:
        """Return the pieces found since the last call."""
        fresh = self.parts[self._taken :]
        self._taken = len(self.parts)
        return fresh


def _may_become_stop(text: str, stops: tuple[str, ...]) -> int:
    """Return how many characters at the end of ``text`` begin a stop string.

    Example:
        >>> _may_become_stop("so far <|e", ("<|end|>", "STOP"))
        3
    """
    longest = max(map(len, stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
