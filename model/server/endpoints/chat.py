"""`/v1/chat/completions`: answers a conversation.

Source of the shapes: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bpe_llama._core import shown
from bpe_llama.chat.request import NO_VARIABLES
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.model.server.api import prompts
from bpe_llama.model.server.api.answers import CallAnswer, EventStream, TokenTexts, finish_reason
from bpe_llama.model.server.api.errors import as_api_error
from bpe_llama.model.server.api.options import add_format, check_stream, constraint_field, sampling_options
from bpe_llama.model.server.api.prompts import Conversation
from bpe_llama.model.server.api.schemas import ChatRequest, ChosenTool
from bpe_llama.model.server.api.tools import Delta
from bpe_llama.model.server.config import Limits
from bpe_llama.model.server.generation import Generation, Job, Service, new_id
from bpe_llama.model.server.scheduler import Update
from bpe_llama.playground.errors import JsonResponse, bad
from bpe_llama.playground.threads import in_thread


async def answer(service: Service, request: ChatRequest, http: Request) -> Response:
    """Return the answer, or a stream of it."""
    name, generator = service.find(request.model)
    check_stream(request)
    talk = conversation(request, service.config.limits)
    options = sampling_options(request, generator, service.config.limits)
    options |= _logprobs(request, service.config.limits.top_logprobs)
    add_format(options, request.response_format, service.config.limits, "response_format")
    limits = {most for most in (request.max_tokens, request.max_completion_tokens) if most is not None}
    if len(limits) > 1:
        raise bad("max_tokens and max_completion_tokens differ; expected one of them", "max_tokens")
    if limits:
        options["max_new_tokens"] = limits.pop()
    constraint = constraint_field(request, "response_format")
    job = await chat_job(service, name, generator, talk, options, request.n or 1, constraint=constraint)
    stream = ChatStream(Generation(service, job, http), talk, request)
    if request.stream:
        await stream.generation.start()
        return EventStream(stream.chunks(), stream.generation.close)
    return JsonResponse(await stream.whole())


def conversation(request: ChatRequest, limits: Limits) -> Conversation:
    """Return the conversation of a request.

    Raises:
        ApiError: If a message, a tool or a variable of the template is not valid.
    """
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or ()]
    prompts.check_tools(tools, limits)
    choice = request.tool_choice or "auto"
    variables = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", request.reasoning_effort)
    for name in variables:
        if name in NO_VARIABLES:
            raise bad(f"chat_template_kwargs holds {shown(name)}, which is no variable", "chat_template_kwargs")
    if request.continue_final_message and request.messages[-1].role != "assistant":
        message = "continue_final_message is true, but the last message is not the assistant's"
        raise bad(message, "continue_final_message")
    if request.continue_final_message and request.add_generation_prompt:
        message = "add_generation_prompt and continue_final_message are both true; expected one of them at most"
        raise bad(message, "add_generation_prompt")
    return Conversation(
        prompts.to_template(request.messages, limits),
        tools or None,
        f"name:{choice.function.name}" if isinstance(choice, ChosenTool) else choice,
        request.parallel_tool_calls is not False,
        variables,
        bool(request.continue_final_message),
        request.add_generation_prompt,
    )


async def chat_job(
    service: Service,
    name: str,
    generator: TextGenerator,
    talk: Conversation,
    options: dict[str, Any],
    n: int = 1,
    field: str = "messages",
    constraint: str = "response_format",
) -> Job:
    """Return what the scheduler runs for a conversation.

    Args:
        service: The server's.
        name: The model's name.
        generator: The model.
        talk: The conversation.
        options: Of `TextGenerator.stream`.
        n: Answers.
        field: The field that holds the conversation, which errors name.
        constraint: The field that holds the schema of the answer, likewise.

    Raises:
        ApiError: If the conversation gives no prompt or too long a one, or ``n`` is above its limit.
    """
    limits = service.config.limits
    if n > limits.choices:
        raise bad(f"n is {n}; expected at most {limits.choices}", "n")
    forced = prompts.forced_call(generator.tokenizer, talk)
    if forced and options.keys() & {"json_schema", "json_object", "regex", "choice", "grammar"}:
        raise bad("tool_choice asks for a call, response_format for another answer; expected one", "tool_choice")
    try:
        ids = await in_thread(prompts.encode, generator.tokenizer, talk)
    except Exception as error:
        raise as_api_error(error, field) from error
    if not ids:
        raise bad(f"{field} gives an empty prompt", field)
    continues = talk.continued and bool(talk.messages[-1]["content"])
    held = "tools" if forced else constraint
    if talk.may_call:  # the markers of calls may be special tokens
        options = {"skip_special_tokens": False} | options
    job = Job(name, generator, [ids], [ids], options | forced, n, field, held, continues)
    job.check_room(service.scheduler.context(name))
    return job


def _logprobs(request: ChatRequest, most: int) -> dict[str, Any]:
    count = request.top_logprobs or 0
    if count and not request.logprobs:
        raise bad("top_logprobs is given without logprobs: true", "top_logprobs")
    if count > most:
        raise bad(f"top_logprobs is {count}; expected at most {most}", "top_logprobs")
    return {"logprobs": True, "top_logprobs": count} if request.logprobs else {}


class ChatStream:
    """The answer to one request, as one body or as chunks."""

    def __init__(self, generation: Generation, talk: Conversation, request: ChatRequest) -> None:
        self.generation, self.request = generation, request
        job = generation.job
        tokenizer = job.generator.tokenizer
        self.texts = TokenTexts(tokenizer)
        family = prompts.tool_family(tokenizer)
        self.answers = [CallAnswer(prompts.parser_for(tokenizer, talk), family) for _ in range(job.n)]
        self.id = new_id("chatcmpl-")
        self.created = int(time.time())
        self.include_usage = bool(request.stream_options and request.stream_options.include_usage)

    async def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        found = await self.generation.collect()
        choices = []
        for number, (choice, answer) in enumerate(zip(found, self.answers, strict=True)):
            answer.feed(choice.text, finished=True)
            content = answer.content if answer.content or not answer.calls else None
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if answer.calls:
                message["tool_calls"] = answer.calls
            choices.append(
                {
                    "index": number,
                    "message": message,
                    "logprobs": self._logprobs(choice),
                    "finish_reason": finish_reason(choice.finish_reason, len(answer.calls)),
                }
            )
        head = self._head("chat.completion")
        return head | {"choices": choices, "usage": self.generation.usage}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a stream."""
        generation, started = self.generation, set()
        async for number, update in generation:
            if number not in started:
                started.add(number)
                yield self._chunk(number, {"role": "assistant", "content": ""})
            answer = self.answers[number]
            logprobs = self._logprobs(update)
            for delta in answer.feed(update.text, finished=update.finish_reason is not None):
                yield self._chunk(number, self._delta(answer, delta), logprobs)
                logprobs = None
            if logprobs is not None and logprobs["content"]:
                yield self._chunk(number, {"content": ""}, logprobs)
            if update.finish_reason is not None:
                yield self._chunk(number, {}, None, finish_reason(update.finish_reason, len(answer.calls)))
        if self.include_usage:
            yield self._head("chat.completion.chunk") | {"choices": [], "usage": generation.usage}

    def _head(self, kind: str) -> dict[str, Any]:
        model = self.generation.job.model
        return {"id": self.id, "object": kind, "created": self.created, "model": model, "system_fingerprint": None}

    def _chunk(
        self, number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = self._head("chat.completion.chunk") | {"choices": [choice]}
        return chunk | {"usage": None} if self.include_usage else chunk

    def _delta(self, answer: CallAnswer, delta: Delta) -> dict[str, Any]:
        if delta.call is None:
            return {"content": delta.content}
        call: dict[str, Any] = {"index": delta.call, "function": {"arguments": delta.arguments}}
        if delta.name is not None:
            call = {"index": delta.call, "id": answer.calls[delta.call]["id"], "type": "function"}
            call["function"] = {"name": delta.name, "arguments": delta.arguments}
        return {"tool_calls": [call]}

    def _logprobs(self, update: Update) -> dict[str, Any] | None:
        """Return the log-probabilities of new tokens, None if the request does not ask for them."""
        if not self.request.logprobs:
            return None
        return {"content": self.texts.entries(update, self.generation.job.end_ids), "refusal": None}
