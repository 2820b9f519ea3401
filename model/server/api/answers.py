"""The parts of answers that several endpoints share: log-probabilities, calls, events of a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bpe_llama.model.server.api.errors import ApiError, to_json, unexpected
from bpe_llama.model.server.api.tools import Delta, Family, ToolParser, new_call_id

if TYPE_CHECKING:
    from bpe_llama.tokenizer import Tokenizer


class EventStream(StreamingResponse):
    """Server-sent events: ``data: JSON`` for each event. An error on the way is an event too.

    Args:
        events: What to send.
        close: Called at the end, whatever ends the stream.
        done: Whether ``data: [DONE]`` ends the stream, and events have no names. Otherwise each is named by its
            ``type``.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[dict[str, Any]], close: Callable[[], None], *, done: bool = True) -> None:
        self.events, self.close, self.done = events, close, done
        super().__init__(self._lines(), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events; when the client goes, this ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()

    async def _lines(self) -> AsyncIterator[bytes]:
        try:
            async for event in self.events:
                yield self._line(event)
        except Exception as error:
            yield self._line(self._error(unexpected(error)))
        if self.done:
            yield b"data: [DONE]\n\n"

    def _line(self, event: dict[str, Any]) -> bytes:
        name = "" if self.done else f"event: {event['type']}\n"
        return f"{name}data: {to_json(event)}\n\n".encode("ascii")

    def _error(self, error: ApiError) -> dict[str, Any]:
        return error.body() if self.done else {"type": "error", **error.body()["error"], "sequence_number": -1}


class TokenTexts:
    """Tokens as clients read them.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def data(self, token_id: int) -> bytes:
        """Return a token's bytes; none where an id has no token."""
        try:
            return bytes(self.tokenizer.id_to_bytes(token_id))
        except KeyError:
            return b""

    def text(self, token_id: int) -> str:
        r"""Return a token's text; bytes that are no UTF-8 as OpenAI writes them, such as ``bytes:\xe6\x97``."""
        data = self.data(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        """Return one token of a chat's log-probabilities."""
        return {"token": self.text(token_id), "logprob": logprob, "bytes": list(self.data(token_id))}

    def entries(
        self, ids: Sequence[int], logprobs: Sequence[float], top: Sequence[Sequence[tuple[int, float]]]
    ) -> list[dict[str, Any]]:
        """Return the ``content`` of a chat's ``logprobs``."""
        top = top or [()] * len(ids)
        return [
            self.entry(token_id, logprob) | {"top_logprobs": [self.entry(*pair) for pair in alternatives]}
            for token_id, logprob, alternatives in zip(ids, logprobs, top, strict=True)
        ]


def finish_reason(found: str | None, calls: int) -> str | None:
    """Return the reason as clients know it."""
    return "tool_calls" if calls and found == "stop" else found


class CallAnswer:
    """The answer of one choice, split into text and calls.

    Args:
        parser: Finds the calls; None for an answer of text alone.
        family: Of the ids of calls.
    """

    def __init__(self, parser: ToolParser | None, family: Family) -> None:
        self.parser, self.family = parser, family
        self.content = ""
        self.calls: list[dict[str, Any]] = []

    def feed(self, text: str, finished: bool) -> list[Delta]:
        """Return what new text adds, and note it."""
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
