"""A tokenizer and a model together: text in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from bpe_llama.model.beam import beam_search
from bpe_llama.model.generation import Engine, GenerationOptions, Sample, search_options
from bpe_llama.model.llama import LlamaForCausalLM
from bpe_llama.model.prompts import check_vocabulary, whole_ids

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
        """The sequence that `stream` began last, its ids and timings included."""
        self._idle: list[Engine] = []
        """The engine that served last, or none while it serves."""

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
                part of it; ``bos``, whether to begin with the tokenizer's beginning-of-text id (by default where the
                prompt is empty, or the tokenizer says so); ``allowed_special``, as of ``Tokenizer.encode``; ``reuse``,
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
        if bos is None:
            begins = len(prompt) == 0 or bool(getattr(self.tokenizer, "add_bos", False))
            bos = begins and self.tokenizer.bos_id is not None
        if options.get("eos_id") is None and not self.model.config.eos_token_ids:
            options["eos_id"] = () if self.tokenizer.eos_id is None else self.tokenizer.eos_id
        ids = self.tokenizer.encode(prompt, bos=bos, allowed_special=allowed) if isinstance(prompt, str) else prompt
        ids = whole_ids(ids)
        if not ids:
            raise ValueError("the prompt is empty, and the tokenizer has no beginning-of-text id to start from")
        vocab_size = self.model.config.vocab_size
        beyond = next((new_id for new_id in ids if vocab_size <= new_id < self.tokenizer.vocab_size), None)
        if beyond is not None:
            token = self.tokenizer.id_to_token(beyond)
            raise ValueError(f"the prompt holds {token!r}, whose id {beyond} is beyond the model's {vocab_size:,}")
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in stops:
            raise ValueError("a stop string is empty; it would end every text before it begins")
        decoder = self.tokenizer.decode_stream()
        if isinstance(prompt, str) and prompt:  # its continuation is no beginning, whose space would be dropped
            for known in ids:
                decoder.push(known)
        return _Writer(ids, GenerationOptions(**options), stops, decoder)


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
