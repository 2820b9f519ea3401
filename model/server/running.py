"""Runs the application on a socket until Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from bpe_llama.model.server.generation import Service


def run(app: FastAPI, host: str, port: int, *, announce: Callable[[str], None]) -> None:
    """Serve until a signal comes: Ctrl-C or SIGTERM lets running requests end, a second Ctrl-C does not wait.

    Args:
        app: The application.
        host: An address or a name of this machine.
        port: 0 takes a free one.
        announce: Called with the URL once the server answers.

    Raises:
        OSError: If the address is not free, or not of this machine; it names address and port.
    """
    service: Service = app.state.service
    sockets = [_bound(host, port)]
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=round(service.grace) + 5,
        server_header=False,
        timeout_keep_alive=30,
    )
    _log_to_stderr()
    server = _Server(config, service, lambda: announce(url_of(host, sockets[0].getsockname()[1])))
    server.run(sockets=sockets)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests end: the scheduler cuts off those that take too long, and clients get what there is."""
        ending = asyncio.ensure_future(self._service.end())
        await super().shutdown(sockets=sockets)
        await ending

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals while the server runs. Unlike uvicorn's, this does not raise them again: the end is orderly."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def url_of(host: str, port: int) -> str:
    """Return the URL of a server that is bound to an address.

    Example:
        >>> url_of("::1", 8000), url_of("0.0.0.0", 80)
        ('http://[::1]:8000', 'http://127.0.0.1:80')
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
