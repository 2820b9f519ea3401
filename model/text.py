"""A tokenizer and a model together: text in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from bpe_llama.model.beam import beam_search
from bpe_llama.model.generation import Engine, GenerationOptions, Sample, search_options
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.prompts import whole_ids

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer


_SEARCH = ("num_beams", "length_penalty", "early_stopping")
_OURS = ("stop", "bos", "allowed_special", "reuse")


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
        tokenizer: Its vocabulary; must not have more ids than the model, whose other ids stand for no text.

    Raises:
        ValueError: If the tokenizer's vocabulary is larger than the model's.
    """

    def __init__(self, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} ids, more than the model's {model.config.vocab_size}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.last: Sample | None = None
        """The sequence that `stream` began last, its ids and timings included."""
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

    def generate(self, prompt: str | Sequence[int], **options: Any) -> str:
        """Return the continuation of one prompt; arguments and errors are those of `stream`.

        ``num_beams``, ``length_penalty`` and ``early_stopping`` search for the likeliest instead of drawing, as in
        `bpe_llama.model.generation.generate`.
        """
        if options.get("num_beams", 1) == 1:
            return "".join(self.stream(prompt, **{name: o for name, o in options.items() if name not in _SEARCH}))
        search = {name: options.pop(name) for name in _SEARCH if name in options}
        search_options({name: value for name, value in options.items() if name not in _OURS})
        writer = self._writer(prompt, options)
        best = beam_search(self.model, writer.prompt, writer.options, **search)[0]
        writer.sample = Sample(
            writer.prompt, writer.options, writer.options.ending_ids(self.model.config), best.new_ids
        )
        writer.sample.finish = "length"
        writer.read()
        return "".join(writer.parts)

    def generate_batch(self, prompts: Sequence[str], *, slots: int = 16, **options: Any) -> list[str]:
        """Return the continuation of each prompt, in order; each is what `generate` alone would have given.

        Args:
            prompts: Of any lengths; as many as there are slots run at once, the next joining as one ends.
            slots: Sequences that run at once.
            **options: As of `stream`.
        """
        if slots < 1:
            raise ValueError(f"slots is {slots}; expected at least 1")
        writers = [self._writer(prompt, options) for prompt in prompts]
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
        return ["".join(writer.parts) for writer in writers]

    def stream(self, prompt: str | Sequence[int], **options: Any) -> Iterator[str]:
        """Yield the continuation of one prompt, piece by piece, as it is found.

        Every piece is valid text: bytes of an unfinished character are held back, and so is what may become a stop
        string, until it is known.

        Args:
            prompt: To be continued; an empty one needs a tokenizer with a beginning-of-text id. Ids are taken as they
                are, and what follows them is a text of its own, as an answer is: where the tokenizer puts a space
                before a text, its first one is dropped.
            **options: Those of `GenerationOptions`, and: ``stop``, a string or several that end the text and are not
                part of it; ``bos``, whether to begin with the tokenizer's beginning-of-text id (by default as `encode`
                says); ``allowed_special``, as of ``Tokenizer.encode``; ``reuse``,
                whether to begin from what is cached of an earlier prompt that began alike: by default where weights
                are float32. In fewer bits what is cached differs by rounding with the way the text was cut, so the
                same seed need not give the same text.

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
            self.last = writer.sample
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
        options = dict(options)
        options.pop("reuse", None)  # plays a role in streams alone
        stop = options.pop("stop", ())
        bos = options.pop("bos", None)
        allowed = options.pop("allowed_special", ())
        if options.get("eos_id") is None:
            options["eos_id"] = self.end_ids
        ids = self.encode(prompt, bos, allowed) if isinstance(prompt, str) else whole_ids(prompt)
        if not ids:
            raise ValueError("the prompt is empty, and the tokenizer has no beginning-of-text id to start from")
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in stops:
            raise ValueError("a stop string is empty; it would end every text before it begins")
        decoder = self.tokenizer.decode_stream()
        if isinstance(prompt, str) and prompt:  # its continuation is no beginning, whose space would be dropped
            for known in ids:
                decoder.push(known)
        return _Writer(ids, GenerationOptions.for_model(self.model, **options), stops, decoder)


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
        self._taken = 0

    def room(self, model: LlamaForCausalLM) -> int:
        """Return the tokens its slot must hold."""
        return min(model.config.context_length, len(self.prompt) + self.options.max_new_tokens)

    def read(self, engine: Engine | None = None) -> None:
        """Decode the ids that have come; end the sequence in the engine if a stop string is complete."""
        if self.sample is None or self.done:
            return
        text = self._held
        for new_id in self.sample.new_ids[self._read :]:
            if new_id not in self.sample.eos_ids:
                with suppress(KeyError):  # models have more ids than tokens, for their matrices to be of round sizes
                    text += self._decoder.push(new_id)
        self._read = len(self.sample.new_ids)
        if self.sample.finish:
            text += self._decoder.flush()
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            text = text[: min(found)]
            if engine and not self.sample.finish:
                engine.leave(self.sample)
        self.done = bool(found or self.sample.finish)
        keep = 0 if self.done else _may_become_stop(text, self._stops)
        self._held = text[len(text) - keep :]
        text = text[: len(text) - keep]
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
