"""Runs the application on a socket until Ctrl-C or SIGTERM."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from bpe_llama.model.server.config import LOOPBACK


def run(app: FastAPI, host: str, port: int, *, grace: float, announce: Callable[[str], None]) -> None:
    """Serve until a signal comes: Ctrl-C or SIGTERM lets running requests end, a second Ctrl-C does not wait.

    Args:
        app: The application.
        host: An address or a name of this machine.
        port: 0 takes a free one.
        grace: Seconds for running requests at the end.
        announce: Called with the URL once the server answers.

    Raises:
        OSError: If the address is not free, or not of this machine; it names address and port.
    """
    sockets = [_bound(host, port)]
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(grace)),
        server_header=False,
        timeout_keep_alive=30,
    )
    _log_to_stderr()
    server = _Server(config, lambda: announce(url_of(host, sockets[0].getsockname()[1])))
    server.run(sockets=sockets)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()


def url_of(host: str, port: int) -> str:
    """Return the URL of a server that is bound to an address.

    Example:
        >>> url_of("::1", 8000), url_of("0.0.0.0", 80)
        ('http://[::1]:8000', 'http://127.0.0.1:80')
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    return host in LOOPBACK or host.startswith("127.")


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":  # there it would let two servers share the port
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        raise OSError(f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}") from None
    return found


def _log_to_stderr() -> None:
    """Let the server's warnings and errors reach standard error, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bpe-llama: %(levelname)s: %(message)s"))
    for name in ("uvicorn.error", "bpe_llama.server"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
