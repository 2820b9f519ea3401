"""Run an application on a socket until it is interrupted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

try:
    import uvicorn
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("a server needs uvicorn: pip install 'bpe_llama[serve]'", name="uvicorn") from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def run_server(app: ASGIApp, host: str, port: int, ready: Callable[[str], object], **options: Any) -> None:
    """Serve an application until Ctrl-C or SIGTERM.

    Args:
        app: The application.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        ready: Called with the URL, once connections are accepted.
        **options: Of ``uvicorn.Config``.

    Raises:
        OSError: If the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from None
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listening.getsockname()[1]}/"
        _Server(uvicorn.Config(app, log_level="warning", **options), lambda: ready(url)).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Reports that it accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()
