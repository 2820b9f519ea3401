"""What several endpoints have in their answers: log-probabilities, tool calls, events of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bpe_llama.model.generation.structured import token_bytes
from bpe_llama.model.server.api.errors import unexpected
from bpe_llama.model.server.api.tools import Delta, Family, ToolParser, new_call_id
from bpe_llama.model.server.scheduler import Update
from bpe_llama.playground.errors import to_json

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer


class EventStream(StreamingResponse):
    """Server-sent events: ``data: JSON`` for each event. An error after the first byte is sent as an event too.

    Args:
        events: What to send.
        close: Called when the stream ends, for whatever reason.
        done: Whether the stream ends with ``data: [DONE]``, as in chat and completions. If not, each event is named by
            its ``type``, as in responses.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[dict[str, Any]], close: Callable[[], None], *, done: bool = True) -> None:
        self.events, self.close, self.done = events, close, done
        super().__init__(self._lines(), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, until the client disconnects."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()

    async def _lines(self) -> AsyncIterator[bytes]:
        sent = 0
        try:
            async for event in self.events:
                yield self._line(event)
                sent += 1
        except Exception as error:
            body = unexpected(error).body()
            yield self._line(body if self.done else body["error"] | {"type": "error", "sequence_number": sent})
        if self.done:
            yield b"data: [DONE]\n\n"

    def _line(self, event: dict[str, Any]) -> bytes:
        name = "" if self.done else f"event: {event['type']}\n"
        return f"{name}data: {to_json(event)}\n\n".encode("ascii")


class TokenTexts:
    """Texts and bytes of tokens in the form of OpenAI's log-probabilities.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def data(self, token_id: int) -> bytes:
        """Return a token's bytes, ``b""`` for an id without a token."""
        return token_bytes(self.tokenizer, token_id)

    def text(self, token_id: int) -> str:
        r"""Return a token's text. Bytes that are not UTF-8 are written as OpenAI's API does: ``bytes:\xe6\x97``."""
        data = self.data(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        """Return one item of a chat's log-probabilities."""
        return {"token": self.text(token_id), "logprob": logprob, "bytes": list(self.data(token_id))}

    def entries(self, update: Update, end_ids: Collection[int]) -> list[dict[str, Any]]:
        """Return the ``content`` of ``logprobs`` for an update: one item for each new id.

        Args:
            update: New ids with their log-probabilities.
            end_ids: The ids that end an answer. An end id has no text, and no item.
        """
        count = len(update.new_ids)
        if update.finish_reason == "stop" and count and update.new_ids[-1] in end_ids:
            count -= 1
        top: list[Any] = update.top_logprobs or [()] * count
        return [
            self.entry(token_id, logprob) | {"top_logprobs": [self.entry(*pair) for pair in alternatives]}
            for token_id, logprob, alternatives in zip(update.new_ids[:count], update.logprobs, top, strict=False)
        ]


def finish_reason(found: str | None, calls: int) -> str | None:
    """Return the ``finish_reason`` of OpenAI's API: "tool_calls" for a complete answer with calls."""
    return "tool_calls" if calls and found == "stop" else found


class CallAnswer:
    """The answer of one choice, split into text and calls.

    Args:
        parser: Finds the calls; None if the answer can be text only.
        family: How the model writes calls, which decides the form of their ids.
    """

    def __init__(self, parser: ToolParser | None, family: Family) -> None:
        self.parser, self.family = parser, family
        self.content = ""
        self.calls: list[dict[str, Any]] = []

    def feed(self, text: str, finished: bool) -> list[Delta]:
        """Return what new text adds to the answer, and append it to ``content`` and ``calls``."""
        if self.parser is None:
            deltas = [Delta(text)] if text else []
        else:
            deltas = self.parser.feed(text) + (self.parser.finish() if finished else [])
        for delta in deltas:
            self.content += delta.content
            if delta.call is None:
                continue
            if delta.call == len(self.calls):
                function = {"name": "", "arguments": ""}
                self.calls.append({"id": new_call_id(self.family), "type": "function", "function": function})
            function = self.calls[delta.call]["function"]
            function["name"] += delta.name or ""
            function["arguments"] += delta.arguments
        return deltas
