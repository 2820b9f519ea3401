"""Runs code blocks of documents, each in a process of its own, without importing torch for each.

A server imports the package once. It forks a process for each Python block, and for each `bpe-llama` of a shell block.
What the shell finds as `bpe-llama` is a small client: it sends its arguments, folder, environment and standard streams.
"""

from __future__ import annotations

import array
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

_CLIENT = f"""#!{sys.executable} -SI
import array, json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(os.path.join(os.path.dirname(__file__), "socket"))
request = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
server.sendmsg([len(request).to_bytes(8, "little")], streams)
server.sendall(request)
answer = server.makefile()
process = int(answer.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(process, number))
sys.exit(int(answer.readline() or 1))  # nothing if a signal ended it
"""


class BlockRunner:
    """A server in a folder; `run` runs a block.

    Args:
        folder: For the clients and the socket; its path must be short.
    """

    def __init__(self, folder: Path) -> None:
        for name in ("bpe-llama", "python-block"):
            (folder / name).write_text(_CLIENT, "utf-8")
            (folder / name).chmod(0o755)
        self.folder = folder
        path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PATH": path, "COLUMNS": "120", "MPLBACKEND": "agg"}
        self.server = subprocess.Popen([sys.executable, __file__, str(folder / "socket")], env=self.environment)
        while not (folder / "socket").exists():
            if self.server.poll() is not None:
                raise RuntimeError("the server of blocks ended")
            time.sleep(0.05)

    def run(self, kind: str, body: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a block of ``sh`` or ``python`` in ``folder`` and return its exit code and output.

        ``environment`` is added to that of the tests.
        """
        script = folder / f"block.{kind}"
        script.write_text(body, "utf-8")
        command = ["bash", "-eu"] if kind == "sh" else [str(self.folder / "python-block")]
        try:
            return subprocess.run(
                [*command, str(script)],
                cwd=folder,
                env=self.environment | environment,
                capture_output=True,
                text=True,
                timeout=900,
                stdin=subprocess.DEVNULL,
            )
        finally:
            script.unlink()

    def close(self) -> None:
        """End the server."""
        self.server.kill()
        self.server.wait()


def _serve(path: str) -> None:
    """Fork a process for each client, for ever."""
    import matplotlib.pyplot  # noqa: F401
    import torch._dynamo  # noqa: F401, by the first optimizer

    import bpe_llama.cli
    import bpe_llama.model.cli  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # clients come once it is there
    while True:
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os._exit(_answer(client))  # tearing down torch takes longer than most blocks
        client.close()


def _answer(client: socket.socket) -> int:
    """Run what a client asks for, in this process, and send it the exit code."""
    length, [(_, _, sent)], _, _ = client.recvmsg(8, socket.CMSG_SPACE(12))
    streams = array.array("i", sent)
    with client.makefile("rb") as file:
        [program, *arguments], folder, environment = json.loads(file.read(int.from_bytes(length, "little")))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    client.sendall(f"{os.getpid()}\n".encode())
    code = 1
    try:
        if Path(program).name == "bpe-llama":
            from bpe_llama.cli import main

            code = main(arguments)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
            code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    client.sendall(f"{code}\n".encode())
    return code


if __name__ == "__main__":
    _serve(sys.argv[1])
