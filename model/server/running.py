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

from bpe_llama.model.server.connections import BoundedConnection
from bpe_llama.model.server.generation import Service
from bpe_llama.playground.running import ReadyServer, bound_socket, url_of


def run(app: FastAPI, host: str, port: int, *, announce: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, which let running requests end; a second Ctrl-C does not wait for them.

    Args:
        app: The application.
        host: An address or a name of this machine.
        port: The port; 0 takes a free one.
        announce: Called with the URL once connections are accepted.

    Raises:
        OSError: If the address is in use or not one of this machine; the message names address and port.
        RuntimeError: If no thread can be started.
    """
    with bound_socket(host, port) as listening:
        _log_to_stderr()
        server = Server(app, lambda: announce(url_of(host, listening.getsockname()[1])))
        app.state.service.scheduler.start()  # here, since uvicorn would log an error of it as a traceback
        server.run(sockets=[listening])


class Server(ReadyServer):
    """uvicorn with our connections and our shutdown.

    Args:
        app: The application.
        ready: Called once connections are accepted.
    """

    def __init__(self, app: FastAPI, ready: Callable[[], object]) -> None:
        self._service: Service = app.state.service

        class Connection(BoundedConnection):
            limits = self._service.config.limits

        config = uvicorn.Config(
            app,
            http=Connection,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=round(self._service.grace) + 5,
            server_header=False,
            timeout_keep_alive=30,
        )
        super().__init__(config, ready)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests end; after ``grace`` seconds the scheduler ends them with what they have so far."""
        ending = asyncio.ensure_future(self._service.end())
        await super().shutdown(sockets=sockets)
        if self.force_exit:
            self._service.scheduler.hurry()
        await ending

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs. Unlike uvicorn's method, do not raise them again after the shutdown."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _log_to_stderr() -> None:
    """Let the server's warnings and errors reach standard error, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("bpe-llama: %(levelname)s: %(message)s"))
    for name in ("uvicorn.error", "bpe_llama.server"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
