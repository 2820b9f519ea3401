"""A loopback server that speaks as much of the Hugging Face Hub's API as `huggingface_hub` needs.

| request | answer |
|---|---|
| ``GET /api/models/ORG/NAME[/revision/REV]`` | commit and files |
| ``GET /api/models/ORG/NAME/tree/REV[/FOLDER]`` | files with sizes and hashes |
| ``HEAD, GET /ORG/NAME/resolve/REV/FILE`` | a small file, or a redirect to a large one, as for files of Git LFS |
| ``GET /lfs/SHA256`` | a large file |

Data sets are at ``/api/datasets`` and ``/datasets``. Statuses, headers and error codes are those that
`huggingface_hub.utils._http.hf_raise_for_status` and `huggingface_hub.file_download` read.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_BYTES = 1000
"""Files of this size or more are redirected to ``/lfs``."""


@dataclass
class Repo:
    """A repository: the files of each commit, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def commit(self, files: dict[str, bytes], *refs: str) -> str:
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[sha] = dict(files)
        for ref in refs or ("main",):
            self.refs[ref] = sha
        return sha


@dataclass
class Hub:
    """The server's content, what was asked for, and how it fails.

    Attributes:
        endpoint: Its URL.
        storage: The URL of large files, of another host name, to which `huggingface_hub` sends no token.
        repos: Repositories by ``ORG/NAME`` or ``datasets/ORG/NAME``.
        asked: The method and path of each request, in order.
        cut: The number of bytes after which the connection breaks, by file.
        status: Answer everything with this error.
    """

    endpoint: str = ""
    storage: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    status: int | None = None

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        self.repos[name] = repo = Repo(**options)
        repo.commit(files)
        return repo

    def fetched(self) -> list[str]:
        """Return the files that were downloaded, and forget all requests."""
        paths = [path for method, path in self.asked if method == "GET"]
        large = {f"/lfs/{_sha256(content)}": name for name, content in self.contents()}
        self.asked.clear()
        small = [path.split("/resolve/")[1].partition("/")[2] for path in paths if "/resolve/" in path]
        return sorted([*small, *(large[path] for path in paths if path.startswith("/lfs/"))])

    def contents(self) -> Iterator[tuple[str, bytes]]:
        for repo in self.repos.values():
            for files in repo.commits.values():
                yield from files.items()


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of a folder by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def serving() -> Iterator[Hub]:
    """Yield a hub that a thread serves on a free port."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint, hub.storage = (f"http://{host}:{server.server_port}" for host in ("127.0.0.1", "localhost"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def log_message(self, *_: object) -> None: ...

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        if self.hub.status is not None:
            self._fail(self.hub.status, "")
        elif path.startswith("/lfs/"):
            assert "Authorization" not in self.headers
            name, content = next((n, c) for n, c in self.hub.contents() if path == f"/lfs/{_sha256(c)}")
            self._send(content, {"Content-Type": "application/octet-stream"}, cut=self.hub.cut.get(name))
        elif path.startswith("/api/"):
            kind, _, rest = path.removeprefix("/api/").partition("/")
            self._api(kind, rest.split("/"))
        else:
            before, _, after = path.partition("/resolve/")
            self._file(before.strip("/"), *after.split("/", 1))

    def _repo(self, name: str, revision: str, *, content: bool) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit and its files, or answer with an error."""
        repo = self.hub.repos.get(name)
        given = self.headers.get("Authorization")
        may_read = repo is not None and (repo.token is None or given == f"Bearer {repo.token}")
        if repo is None or not (may_read or repo.gated):
            self._fail(401 if given is None else 404, "RepoNotFound")
            return None
        if content and not may_read:
            self._fail(401 if given is None else 403, "GatedRepo")
            return None
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            self._fail(404, "RevisionNotFound")
            return None
        return sha, repo.commits[sha]

    def _api(self, kind: str, parts: list[str]) -> None:
        name, what, rest = "/".join(parts[:2]), parts[2:3], parts[3:]
        if kind not in ("models", "datasets") or what not in ([], ["revision"], ["tree"], ["paths-info"]):
            self._fail(404, "")
            return
        revision = rest[0] if rest else "main"
        found = self._repo(name if kind == "models" else f"datasets/{name}", revision, content=False)
        if found is None:
            return
        sha, files = found
        described = [self._described(path, content) for path, content in files.items()]
        if what == ["tree"]:
            folder = "".join(f"{part}/" for part in rest[1:])
            inside = [entry for entry in described if entry["path"].startswith(folder)]
            if folder and not inside:
                self._fail(404, "EntryNotFound", {"X-Repo-Commit": sha})
            elif "recursive=true" in self.path.lower():
                self._send_json(inside)
            else:
                names = {entry["path"]: entry["path"].removeprefix(folder).partition("/") for entry in inside}
                here = [entry for entry in inside if not names[entry["path"]][1]]
                folders = sorted({folder + name for name, slash, _ in names.values() if slash})
                self._send_json(
                    [*({"type": "directory", "path": path, "size": 0, "oid": ""} for path in folders), *here]
                )
        elif what == ["paths-info"]:
            asked = json.loads(self.body).get("paths", [])
            self._send_json([entry for entry in described if entry["path"] in asked])
        else:
            siblings = [{"rfilename": path} for path in files]
            self._send_json({"_id": "0", "id": name, "sha": sha, "private": False, "tags": [], "siblings": siblings})

    def _described(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if len(content) >= LFS_BYTES:
            entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 130}
        return entry

    def _file(self, name: str, revision: str = "main", path: str = "") -> None:
        found = self._repo(name, revision, content=True)
        if found is None:
            return
        sha, files = found
        if path not in files:
            self._fail(404, "EntryNotFound", {"X-Repo-Commit": sha})
            return
        content = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if len(content) < LFS_BYTES:
            self._send(content, headers, cut=self.hub.cut.get(path))
            return
        digest = _sha256(content)
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{digest}"'}
        self._send(b"", headers | {"Location": f"{self.hub.storage}/lfs/{digest}"}, status=302)

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._send(b"", named | (headers or {}), status=status)

    def _send_json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None and self.command != "HEAD":
            self.close_connection = True
