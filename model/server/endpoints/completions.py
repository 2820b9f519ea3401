"""`/v1/completions`: continues text.

Source of the shapes: https://platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bpe_llama._core import DecodeStream
from bpe_llama.model.generation.structured import structured_options
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.generation.text_options import check_known
from bpe_llama.model.generation.text_request import has_token
from bpe_llama.model.server.api.answers import EventStream, TokenTexts
from bpe_llama.model.server.api.errors import as_api_error
from bpe_llama.model.server.api.options import add_format, check_stream, constraint_field, sampling_options
from bpe_llama.model.server.api.schemas import CompletionRequest
from bpe_llama.model.server.generation import Generation, Job, Service, new_id
from bpe_llama.model.server.scheduler import Update
from bpe_llama.playground.errors import JsonResponse, bad
from bpe_llama.playground.threads import in_thread
from bpe_llama.tokenizer import Tokenizer

DEFAULT_TOKENS = 16
"""OpenAI's default of ``max_tokens``."""


async def answer(service: Service, request: CompletionRequest, http: Request) -> Response:
    """Return the continuations, or a stream of them."""
    name, generator = service.find(request.model)
    limits = service.config.limits
    n = request.n or 1
    check_stream(request)
    if request.suffix:
        raise bad("suffix is given; this server only continues text", "suffix")
    if request.best_of not in (None, n):
        raise bad(f"best_of is {request.best_of}; expected n, which is {n}", "best_of")
    if request.max_tokens == 0 and not request.echo:
        raise bad("max_tokens is 0; expected at least 1, or echo", "max_tokens")
    if request.logprobs is not None and request.logprobs > limits.top_logprobs:
        raise bad(f"logprobs is {request.logprobs}; expected at most {limits.top_logprobs}", "logprobs")
    options = sampling_options(request, generator, limits)
    add_format(options, request.response_format, limits, "response_format")
    options["max_new_tokens"] = DEFAULT_TOKENS if request.max_tokens is None else max(request.max_tokens, 1)
    if request.logprobs is not None:
        options |= {"logprobs": True, "top_logprobs": request.logprobs, "prompt_logprobs": bool(request.echo)}
    prompts = prompts_of(request.prompt, "prompt")
    if len(prompts) * n > limits.choices:
        raise bad(f"{len(prompts)} prompts with n = {n} are over {limits.choices} choices", "n" if n > 1 else "prompt")
    try:
        ids = await in_thread(lambda: [ids_of(generator, prompt) for prompt in prompts])
    except Exception as error:
        raise as_api_error(error, "prompt") from error
    job = Job(name, generator, prompts, ids, options, n, constraint=constraint_field(request, "response_format"))
    job.check_room(service.scheduler.context(name))
    stream = CompletionStream(Generation(service, job, http), request)
    if request.stream:
        await stream.generation.start()
        return EventStream(stream.chunks(), stream.generation.close)
    return JsonResponse(await stream.whole())


def prompts_of(given: str | Sequence[Any], field: str) -> list[str | list[int]]:
    """Return the prompts of a field that holds a text, texts, ids, or lists of ids.

    Raises:
        ApiError: If a list is empty.

    Example:
        >>> prompts_of([5, 6], "prompt"), prompts_of("a", "prompt")
        ([[5, 6]], ['a'])
    """
    if isinstance(given, str):
        return [given]
    if not given or any(isinstance(prompt, list) and not prompt for prompt in given):
        raise bad(f"{field} is an empty list", field)
    prompts: list[Any] = list(given)
    return [prompts] if isinstance(prompts[0], int) else prompts


def ids_of(generator: TextGenerator, prompt: str | list[int]) -> list[int]:
    """Return the ids of a prompt.

    Raises:
        ValueError: If an id is outside the vocabulary, or the prompt is empty and the tokenizer has no
            beginning-of-text id.
    """
    ids = generator.encode(prompt) if isinstance(prompt, str) else prompt
    if not ids:
        raise ValueError("the prompt is empty, and the tokenizer has no beginning-of-text id to start from")
    check_known(ids, "the prompt", generator.model.config.vocab_size, generator.tokenizer)
    return ids


class CompletionStream:
    """The continuations of one request, as one body or as chunks."""

    def __init__(self, generation: Generation, request: CompletionRequest) -> None:
        self.generation, self.request = generation, request
        self.texts = TokenTexts(generation.job.generator.tokenizer)
        self.id = new_id("cmpl-")
        self.created = int(time.time())
        self.include_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._offsets: dict[int, TextOffsets] = {}

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        found = await self.generation.collect()
        choices = []
        for number, choice in enumerate(found):
            text = self._echo(number)
            logprobs = self._logprobs(number, choice, first=True)
            text += "" if self.request.max_tokens == 0 else choice.text
            reason = "length" if self.request.max_tokens == 0 else choice.finish_reason
            choices.append({"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason})
        return self._head() | {"choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a stream."""
        generation, started = self.generation, set()
        nothing = self.request.max_tokens == 0
        async for number, update in generation:
            first = number not in started
            started.add(number)
            text = (self._echo(number) if first else "") + ("" if nothing else update.text)
            logprobs = self._logprobs(number, update, first)
            reason = "length" if nothing and update.finish_reason else update.finish_reason
            if text or reason or logprobs:
                yield self._chunk({"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason})
        if self.include_usage:
            yield self._head() | {"choices": [], "usage": self._usage()}

    def _head(self) -> dict[str, Any]:
        model = self.generation.job.model
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": model,
            "system_fingerprint": None,
        }

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = self._head() | {"choices": [choice]}
        return chunk | {"usage": None} if self.include_usage else chunk

    def _usage(self) -> dict[str, Any]:
        usage = self.generation.usage
        if self.request.max_tokens == 0:
            usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
        return usage

    def _echo(self, number: int) -> str:
        """Return the prompt's text if ``echo`` is true, "" otherwise."""
        if not self.request.echo:
            return ""
        job = self.generation.job
        prompt = job.prompts[number // job.n]
        if isinstance(prompt, str):
            return prompt
        tokenizer = job.generator.tokenizer
        return tokenizer.decode([token_id for token_id in prompt if has_token(tokenizer, token_id)])

    def _logprobs(self, number: int, choice: Update, first: bool) -> dict[str, Any] | None:
        """Return the log-probabilities of new tokens; with ``echo``, the prompt's come before them."""
        if self.request.logprobs is None:
            return None
        job = self.generation.job
        prompt, prompt_ids = job.prompts[number // job.n], job.ids[number // job.n]
        if number not in self._offsets:
            continues = (isinstance(prompt, str) and prompt) or structured_options(job.options)
            skip = job.generator.skips_special_tokens(job.options)
            self._offsets[number] = TextOffsets(job.generator.tokenizer, prompt_ids if continues else (), skip)
        offsets = self._offsets[number]
        ids: list[int] = []
        places: list[int] = []
        logprobs: list[float | None] = []
        top: list[list[tuple[int, float]]] = []
        if self.request.echo and first:
            ids, logprobs = list(prompt_ids), list(choice.prompt_logprobs)
            top = list(choice.prompt_top_logprobs) or [[] for _ in ids]
            places = offsets.of_prompt(ids, prompt, self._echo(number))
        if self.request.max_tokens != 0:
            places += [offsets.next(token_id) for token_id in choice.new_ids]
            ids, logprobs = ids + choice.new_ids, logprobs + list(choice.logprobs)
            top = top + (choice.top_logprobs or [[] for _ in choice.new_ids])
        return {
            "tokens": [self.texts.text(token_id) for token_id in ids],
            "token_logprobs": logprobs,
            "top_logprobs": [self._alternatives(*each) for each in zip(ids, logprobs, top, strict=True)]
            if self.request.logprobs
            else None,
            "text_offset": places,
        }

    def _alternatives(
        self, token_id: int, logprob: float | None, top: list[tuple[int, float]]
    ) -> dict[str, float] | None:
        """Return the log-probabilities of the most likely tokens and of the token itself, by their texts."""
        if logprob is None:
            return None
        found: dict[str, float] = {}
        for other, value in top:  # two tokens may have the same text: the likelier one counts
            found.setdefault(self.texts.text(other), value)
        found.setdefault(self.texts.text(token_id), logprob)
        return found


class TextOffsets:
    """The character at which each token of an answer begins.

    Args:
        tokenizer: The model's.
        before: Ids before the answer, if its text continues theirs: a tokenizer may drop the first space of a text.
        skip_special_tokens: Whether the answer is without special tokens, which then take up no characters.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int], skip_special_tokens: bool) -> None:
        self.tokenizer = tokenizer
        self.position = 0
        self._decoder = tokenizer.decode_stream(skip_special_tokens=skip_special_tokens)
        for token_id in before:
            self._decoder.push(token_id)

    def of_prompt(self, ids: list[int], prompt: str | list[int], text: str) -> list[int]:
        """Return the characters at which the ids of a prompt begin, whose text comes before the answer's.

        Ids before those of the text, such as a beginning-of-text id, take up no characters.
        """
        own = self.tokenizer.encode(prompt) if isinstance(prompt, str) else ids
        starts = (skip for skip in range(len(ids)) if ids[skip : skip + len(own)] == own)
        hidden = next(starts, 0) if own else len(ids)
        places, self.position, decoder = [0] * hidden, 0, self.tokenizer.decode_stream()
        for token_id in ids[hidden:]:
            places.append(self._advance(decoder, token_id))
        self.position = len(text)
        return places

    def next(self, token_id: int) -> int:
        """Return the character at which the next token of the answer begins."""
        return self._advance(self._decoder, token_id)

    def _advance(self, decoder: DecodeStream, token_id: int) -> int:
        place = self.position
        if has_token(self.tokenizer, token_id):
            self.position += len(decoder.push(token_id))
        return place
