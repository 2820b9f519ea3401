"""Run an application on a socket until Ctrl-C or SIGTERM."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

try:
    import uvicorn
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("a server needs uvicorn: pip install 'bpe_llama[serve]'", name="uvicorn") from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def run_server(app: ASGIApp, host: str, port: int, ready: Callable[[str], object]) -> None:
    """Serve an application until Ctrl-C or SIGTERM.

    Args:
        app: The application.
        host: The address to listen on.
        port: The port; 0 takes a free one.
        ready: Called with the URL, once connections are accepted.

    Raises:
        OSError: See `bound_socket`.
    """
    with bound_socket(host, port) as listening:
        url = f"{url_of(host, listening.getsockname()[1])}/"
        ReadyServer(uvicorn.Config(app, log_level="warning"), lambda: ready(url)).run(sockets=[listening])


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address; the caller closes it.

    Args:
        host: An address or a name of this machine; IPv6 if it holds a colon.
        port: The port; 0 takes a free one.

    Raises:
        OSError: If the address is in use or not one of this machine, or the port is no port; the message names both.

    Example:
        >>> with bound_socket("127.0.0.1", 0) as listening:
        ...     listening.getsockname()[0]
        '127.0.0.1'
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":  # on Windows the option lets two servers share the port
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise OSError(f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}") from None
    return bound


def url_of(host: str, port: int) -> str:
    """Return the URL of a server that is bound to an address.

    Example:
        >>> url_of("::1", 8000), url_of("0.0.0.0", 80)
        ('http://[::1]:8000', 'http://127.0.0.1:80')
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class ReadyServer(uvicorn.Server):
    """A server that calls ``ready`` once it accepts connections."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then call ``ready``."""
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()
