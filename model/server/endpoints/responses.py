"""`/v1/responses`: one answer to a text or a conversation; nothing is stored.

Source of the shapes: https://platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bpe_llama.model.server.api import prompts
from bpe_llama.model.server.api.answers import CallAnswer, EventStream, TokenTexts
from bpe_llama.model.server.api.options import add_format, constraint_field, sampling_options
from bpe_llama.model.server.api.prompts import Conversation
from bpe_llama.model.server.api.schemas import InputItem, NamedFunction, ResponseRequest, ResponseTool
from bpe_llama.model.server.endpoints.chat import chat_job
from bpe_llama.model.server.generation import Generation, Service, new_id, unless_gone
from bpe_llama.model.server.scheduler import Update
from bpe_llama.playground.errors import JsonResponse, bad


async def answer(service: Service, request: ResponseRequest, http: Request) -> Response:
    """Return the response, or a stream of its events."""
    for field, instead in request.refused.items():
        if getattr(request, field):
            raise bad(f"{field} is given; {instead}", field, "unsupported_field")
    name, generator = service.find(request.model)
    limits = service.config.limits
    talk = conversation(request)
    prompts.check_tools(talk.tools or [], limits)
    if len(talk.messages) > limits.messages:
        raise bad(f"input has {len(talk.messages)} items; expected at most {limits.messages}", "input")
    options = sampling_options(request, generator, limits)
    add_format(options, request.text.format if request.text else None, limits, "text.format")
    count = request.top_logprobs or 0
    if count > limits.top_logprobs:
        raise bad(f"top_logprobs is {count}; expected at most {limits.top_logprobs}", "top_logprobs")
    if request.include or count:
        options |= {"logprobs": True, "top_logprobs": count}
    if request.max_output_tokens is not None:
        options["max_new_tokens"] = request.max_output_tokens
    constraint = constraint_field(request, "text.format")
    job = await chat_job(service, name, generator, talk, options, field="input", constraint=constraint)
    stream = ResponseStream(Generation(service, job, http), talk, request)
    await stream.generation.start()
    if request.stream:
        return EventStream(stream.events(), stream.generation.close, done=False)
    try:
        await unless_gone(http, stream.run())
    finally:
        stream.generation.close()
    return JsonResponse(stream.response())


def conversation(request: ResponseRequest) -> Conversation:
    """Return the conversation of a request.

    Raises:
        ApiError: If there is no item, or an item lacks a field.
    """
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        messages.append({"role": "user", "content": request.input})
    else:
        for place, item in enumerate(request.input):
            _append(messages, item, f"input[{place}]")
    if not messages:
        raise bad("input is an empty list", "input")
    choice = request.tool_choice or "auto"
    tools = [_tool(tool) for tool in request.tools or ()]
    named = f"name:{choice.name}" if isinstance(choice, NamedFunction) else choice
    effort = request.reasoning.effort if request.reasoning else None
    variables = {} if effort is None else {"reasoning_effort": effort}
    return Conversation(messages, tools or None, named, request.parallel_tool_calls is not False, variables)


def _tool(tool: ResponseTool) -> dict[str, Any]:
    function = tool.model_dump(exclude_none=True)
    return {"type": function.pop("type"), "function": function}


def _append(messages: list[dict[str, Any]], item: InputItem, where: str) -> None:
    """Append an item of the input; a call becomes part of the assistant's message before it."""
    needed = {"message": ("role", "content"), "function_call": ("call_id", "name", "arguments")}
    for field in needed.get(item.type, ("call_id", "output")):
        if getattr(item, field) is None:
            raise bad(f"{where}.{field} is missing", f"{where}.{field}", "missing_field")
    if item.type == "message":
        messages.append({"role": item.role, "content": prompts.text_of(item.content, f"{where}.content")})
    elif item.type == "function_call":
        arguments = prompts.call_arguments(item.arguments or "", f"{where}.arguments")
        function = {"name": item.name, "arguments": arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        output = prompts.text_of(item.output, f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})


class ResponseStream:
    """The response to one request, as its events; the last event holds the whole response."""

    def __init__(self, generation: Generation, talk: Conversation, request: ResponseRequest) -> None:
        self.generation, self.request = generation, request
        tokenizer = generation.job.generator.tokenizer
        self.texts = TokenTexts(tokenizer)
        self.answer = CallAnswer(prompts.parser_for(tokenizer, talk), prompts.tool_family(tokenizer))
        self.id = new_id("resp_")
        self.created = int(time.time())
        self.output: list[dict[str, Any]] = []
        self.status = "in_progress"
        self._waiting: list[dict[str, Any]] = []
        """The log-probabilities, if the request asks for them, of tokens whose text is still held."""
        self._open: dict[str, Any] | None = None
        """The item that is being written."""
        self._number = -1

    async def run(self) -> None:
        """Write the whole response."""
        async for _ in self.events():
            pass

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a stream, in OpenAI's order."""
        yield self._event("response.created", response=self.response())
        yield self._event("response.in_progress", response=self.response())
        reason = None
        async for _, update in self.generation:
            reason = update.finish_reason
            for event in self._of_update(update):
                yield event
        self.status = "incomplete" if reason == "length" else "completed"
        for event in self._close(self.status):
            yield event
        yield self._event(f"response.{self.status}", response=self.response())

    def _of_update(self, update: Update) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        self._waiting += self._logprobs(update)
        for delta in self.answer.feed(update.text, finished=update.finish_reason is not None):
            if delta.call is None:
                if self._open is None or self._open["type"] != "message":
                    events += [*self._close(), *self._open_message()]
                item = self._open
                assert item is not None
                item["content"][0]["text"] += delta.content
                where = self._where(item) | {"content_index": 0}
                logprobs, self._waiting = self._waiting, []
                events.append(
                    self._event("response.output_text.delta", delta=delta.content, logprobs=logprobs, **where)
                )
                item["content"][0]["logprobs"] += logprobs
            else:
                self._waiting = []  # of tokens that are a call, not text
                if delta.name is not None:
                    events += [*self._close(), *self._open_call(delta.name, self.answer.calls[delta.call]["id"])]
                item = self._open
                assert item is not None
                item["arguments"] += delta.arguments
                if delta.arguments:
                    name = "response.function_call_arguments.delta"
                    events.append(self._event(name, delta=delta.arguments, **self._where(item)))
        return events

    def _open_message(self) -> list[dict[str, Any]]:
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item: dict[str, Any] = {"id": new_id("msg_"), "type": "message", "status": "in_progress"}
        item |= {"role": "assistant", "content": []}
        added = self._add(item)
        item["content"] = [part]
        where = self._where(item) | {"content_index": 0}
        return [added, self._event("response.content_part.added", part=part | {"logprobs": []}, **where)]

    def _open_call(self, name: str, call_id: str) -> list[dict[str, Any]]:
        item = {"id": new_id("fc_"), "type": "function_call", "status": "in_progress", "call_id": call_id}
        return [self._add(item | {"name": name, "arguments": ""})]

    def _add(self, item: dict[str, Any]) -> dict[str, Any]:
        self.output.append(item)
        self._open = item
        return self._event("response.output_item.added", item=dict(item), output_index=len(self.output) - 1)

    def _close(self, status: str = "completed") -> list[dict[str, Any]]:
        """Return the events that complete the item that is being written."""
        item, self._open = self._open, None
        if item is None:
            return []
        item["status"] = status
        where = self._where(item)
        events = []
        if item["type"] == "message":
            part = item["content"][0]
            part["logprobs"] += self._waiting
            self._waiting = []
            inner = where | {"content_index": 0}
            text, logprobs = part["text"], part["logprobs"]
            events = [
                self._event("response.output_text.done", text=text, logprobs=logprobs, **inner),
                self._event("response.content_part.done", part=part, **inner),
            ]
        else:
            name = "response.function_call_arguments.done"
            events = [self._event(name, arguments=item["arguments"], name=item["name"], **where)]
        return [*events, self._event("response.output_item.done", item=item, output_index=where["output_index"])]

    def _where(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self.output) - 1}

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}

    def _logprobs(self, update: Update) -> list[dict[str, Any]]:
        asked = self.request.include or self.request.top_logprobs
        return self.texts.entries(update, self.generation.job.end_ids) if asked else []

    def response(self) -> dict[str, Any]:
        """Return the response as it is now."""
        request, done = self.request, self.status != "in_progress"
        usage = self.generation.usage
        options = self.generation.job.options
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": self.status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self.generation.job.model,
            "output": [dict(item) for item in self.output],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning and request.reasoning.effort, "summary": None},
            "store": False,
            "temperature": options.get("temperature"),
            "text": {"format": {"type": "text"}}
            if request.text is None or request.text.format is None
            else request.text.model_dump(by_alias=True, exclude_none=True),
            "tool_choice": request.tool_choice.model_dump()
            if isinstance(request.tool_choice, NamedFunction)
            else request.tool_choice or "auto",
            "tools": [tool.model_dump() for tool in request.tools or ()],
            "top_p": options.get("top_p"),
            "truncation": "disabled",
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": self.generation.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            }
            if done
            else None,
            "metadata": {},
        }
