"""The settings of a server, and the limits of one request."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bpe_llama._arguments import iterator, number, string

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^\s/?#@:A-Z]+)(:[0-9]{1,5})?")
"""An origin as a browser sends it: scheme, host and port, in lower case; ``null`` is that of a local file."""


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine only.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0"), is_loopback("127.²")
        (True, False, False)
    """
    return host.lower() in ("localhost", "::1") or bool(re.fullmatch(r"127\.[0-9.]+", host))


@dataclass(frozen=True)
class Limits:
    """Limits of one request. A request beyond one is refused by an error that names the field."""

    body_bytes: int = 8 << 20
    """Bytes of a request's body."""
    choices: int = 128
    """Choices of one request: ``n`` times the prompts of its list."""
    top_logprobs: int = 20
    """Alternatives at each position."""
    stop_strings: int = 16
    """Stop strings of one request."""
    stop_characters: int = 1600
    """Characters of a stop string."""
    words: int = 256
    """Strings of ``bad_words`` and of ``dry_sequence_breakers``."""
    word_length: int = 1000
    """Characters of each."""
    header_seconds: float = 30.0
    """Seconds in which the head of a request must have come."""
    body_seconds: float = 60.0
    """Seconds in which a body must have come."""
    reading_seconds: float = 60.0
    """Seconds in which a client must read what waits for it in the socket."""
    inputs: int = 2048
    """Texts of one embeddings request; OpenAI's limit."""
    schema_bytes: int = 64 << 10
    """Bytes of a JSON schema or grammar, and of all schemas of the tools together."""
    messages: int = 4096
    """Messages of a conversation."""
    tools: int = 128
    """Tools of a request; OpenAI's limit."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How a server is reached, and by whom.

    Args:
        host: The address it is bound to. On a loopback address without keys the ``Host`` header of a request must name
            this machine, so that a web page cannot reach the server through a domain name that resolves to it.
        api_keys: Clients must send one as ``Authorization: Bearer KEY``. Without any, no key is asked for.
        cors_origins: Origins of web pages that may read answers; ``*`` allows all, the default allows none.
        timeout: Seconds after which a request ends; None for no limit.
        limits: Limits of one request.

    Raises:
        ValueError: If a key is empty or not ASCII, an origin is none, or ``timeout`` is not above 0.
        TypeError: If keys or origins are no list of texts, or ``timeout`` is no number.
    """

    host: str = "127.0.0.1"
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    timeout: float | None = 600.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("api_keys", "cors_origins"):
            texts = tuple(iterator(name, getattr(self, name), "a list of str"))
            object.__setattr__(self, name, tuple(string(f"{name}[{i}]", text) for i, text in enumerate(texts)))
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or key != key.strip():
                raise ValueError("an API key is empty, or has characters other than printable ASCII")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"the CORS origin is {origin!r}; expected one such as 'http://localhost:3000', or '*'")
        if self.timeout is not None and not number("timeout", self.timeout) > 0:
            raise ValueError(f"timeout is {self.timeout}; expected seconds above 0")

    @property
    def checks_host(self) -> bool:
        """Return whether the ``Host`` header of a request must name this machine."""
        return is_loopback(self.host) and not self.api_keys
