"""A small Hugging Face hub on this machine, for the real client.

It speaks what downloading needs: metadata and content of files at a branch, tag or commit, large files on a second
server (as on the hub, where another host stores them), byte ranges, lists of files and revisions, access tokens, and
the error codes.  And what uploading needs: repositories are made, and commits take small files with them and large ones
from the second server.  It can also misbehave on request, and it remembers every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

ABSENT = (404, "EntryNotFound", "Entry not found")
NO_REVISION = (404, "RevisionNotFound", "Invalid rev id")
# The real hub does not tell strangers whether a repository exists.
NO_REPOSITORY = (401, "RepoNotFound", "Repository not found")
GATED = (403, "GatedRepo", "Access to this model is restricted")


class Request(NamedTuple):
    """What the client asked for."""

    server: str
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Repo:
    """Commits of one repository."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    token: str | None = None
    gated: bool = False
    private: bool = False
    messages: list[str] = field(default_factory=list)
    """Of the commits that were uploaded."""


class HubServer:
    """Context manager: the servers run inside the ``with`` block and are gone after it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.cut: dict[str, int] = {}
        """Name of a file: bytes after which the next transfer of it breaks off, once."""
        self.instead: dict[str, bytes] = {}
        """Name of a file: other content that is sent in its place, whatever was announced."""
        self.failing: int | None = None
        """Answer everything with this status."""
        self.saying: dict[str, str] = {}
        """Headers of every answer about a file, instead of its own."""
        self.mute: set[str] = set()
        """Never answer to these methods, until the server is closed."""
        self.slow: float | None = None
        """Seconds to wait before each byte of a file."""
        self.writers: dict[str, str] = {}
        """Access tokens that may write, and whose they are."""
        self.uploaded: dict[str, bytes] = {}
        """Content of large files by its SHA-256, before a commit names them."""
        self.large_from = 1 << 20
        """Bytes from which on an uploaded file is a large one."""
        self.closed = Event()
        self._servers = {role: _serve(self, role) for role in ("hub", "storage")}

    @property
    def endpoint(self) -> str:
        """Address of the hub."""
        return self.address("hub")

    def address(self, role: str) -> str:
        """Address of the hub or of the server that stores large files, by another name as that of the real hub has."""
        host = "127.0.0.1" if role == "hub" else "localhost"
        return f"http://{host}:{self._servers[role].server_address[1]}"

    def add(
        self, name: str, files: dict[str, bytes], *, branch: str = "main", large: Collection[str] = (), **access: object
    ) -> str:
        """Commit files to a branch; returns the hash of the commit."""
        repo = self.repos.setdefault(name, Repo(**access))
        commit = hashlib.sha1(repr((name, branch, sorted(files.items()))).encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        repo.large |= set(large)
        return commit

    def asked(self, method: str, ending: str) -> list[Request]:
        """Requests for one file, on the server that has its content."""
        return [request for request in self.requests if request.method == method and request.path.endswith(ending)]

    def transfers(self, content: bytes) -> list[Request]:
        """Requests for the bytes of a large file."""
        return self.asked("GET", f"/stored/{hashlib.sha256(content).hexdigest()}")

    def __enter__(self) -> HubServer:
        for server in self._servers.values():
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closed.set()
        for server in self._servers.values():
            server.shutdown()
            server.server_close()


def _serve(hub: HubServer, role: str) -> ThreadingHTTPServer:
    handler = type(f"{role.title()}Handler", (_HANDLERS[role],), {"hub": hub, "role": role})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    """One request per connection, so that nothing outlives the server."""

    hub: ClassVar[HubServer]
    role: ClassVar[str]
    answer: Callable[[str], None]

    def do_GET(self) -> None:
        self._note()
        if self.command in self.hub.mute:
            self.hub.closed.wait()
        elif self.hub.failing is not None:
            self._error(self.hub.failing, "", "out of order")
        else:
            self.answer(unquote(urlsplit(self.path).path))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._note()
        body = self._body()
        if self.hub.failing is not None:
            self._error(self.hub.failing, "", "out of order")
        else:
            self.take(unquote(urlsplit(self.path).path), body)

    do_PUT = do_POST

    def take(self, path: str, body: bytes) -> None:
        self._error(404, "", "nothing to send there")

    def log_message(self, format: str, *args: object) -> None:
        """Keep the output of the tests clean."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _note(self) -> None:
        token = self.headers.get("Authorization")
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.role, self.command, path, self.headers.get("Range"), token))

    def _error(self, status: int, code: str, message: str, **headers: str) -> None:
        self._send(b"", status, {"X-Error-Code": code, "X-Error-Message": message, **headers})

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _send(self, body: bytes, status: int, headers: dict[str, str], *, stop_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.slow is None:
            self.wfile.write(body[:stop_after])
        for byte in body if self.hub.slow is not None else ():
            if self.hub.closed.wait(self.hub.slow):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    def _content(self, name: str, body: bytes, headers: dict[str, str]) -> None:
        """A file, or the part of it that the client asks for."""
        body = self.hub.instead.get(name, body) if self.command == "GET" else body
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted:
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        stop_after = self.hub.cut.pop(name, None) if self.command == "GET" else None
        headers |= {"Accept-Ranges": "bytes", "Content-Disposition": f'attachment; filename="{name}";'}
        self._send(body[start:], status, headers, stop_after=stop_after)


class _HubHandler(_Handler):
    def answer(self, path: str) -> None:
        found = re.fullmatch(r"/(api/models/)?([^/]+/[^/]+)/(\w+)(?:/([^/]+))?(?:/(.+))?", path)
        repo = self.hub.repos.get(found[2]) if found else None
        if found is None or repo is None or not self._may_see(repo):
            self._error(*NO_REPOSITORY)
        elif found[1] and found[3] == "refs":
            self._refs(repo)
        else:
            self._at_revision(repo, found)

    def take(self, path: str, body: bytes) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.hub.writers:
            self._error(401, "", "Invalid username or password.")
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body), self.hub.writers[token])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._say_where(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/(.+)", path):
            repo = self.hub.repos.get(found[1])
            if repo is None:
                self._error(*NO_REPOSITORY)
            elif found[3] not in {"main", *repo.branches}:
                self._error(*NO_REVISION)
            elif found[2] == "preupload":
                self._say_how(json.loads(body))
            else:
                self._commit(found[1], repo, found[3], [json.loads(line) for line in body.splitlines()])
        else:
            super().take(path, body)

    def _create(self, asked: dict[str, Any], owner: str) -> None:
        organisation = asked.get("organization") or owner
        name = f"{organisation}/{asked['name']}"
        made = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if organisation != owner:
            self._error(403, "", "You don't have the rights to create a model under this namespace")
        elif name in self.hub.repos:
            self._json({"error": "You already created this model repo", **made}, 409)
        else:
            self.hub.repos[name] = Repo(private=bool(asked.get("private")) or asked.get("visibility") == "private")
            self._json(made)

    def _say_how(self, asked: dict[str, Any]) -> None:
        sizes = {file["path"]: file["size"] for file in asked["files"]}
        modes = {path: "lfs" if size >= self.hub.large_from else "regular" for path, size in sizes.items()}
        files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self._json({"files": files})

    def _say_where(self, asked: dict[str, Any]) -> None:
        address = f"{self.hub.address('storage')}/upload/"
        upload = lambda file: {"upload": {"href": f"{address}{file['oid']}"}}
        objects = [{"oid": file["oid"], "size": file["size"], "actions": upload(file)} for file in asked["objects"]]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> None:
        files = dict(repo.commits.get(repo.branches.get(branch, ""), {}))
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
                repo.large.add(value["path"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.add(name, files, branch=branch)
        self._json({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}", "commitOid": commit})

    def _may_see(self, repo: Repo) -> bool:
        return repo.token is None or self.headers.get("Authorization") == f"Bearer {repo.token}"

    def _refs(self, repo: Repo) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in repo.branches.items()
        ]
        self._json({"branches": branches, "tags": [], "converts": []})

    def _at_revision(self, repo: Repo, found: re.Match[str]) -> None:
        commit = repo.branches.get(found[4], found[4])
        if commit not in repo.commits:
            self._error(*NO_REVISION)
        elif found[1]:
            entries = [_entry(repo, name, body) for name, body in repo.commits[commit].items()]
            self._json(entries if found[3] == "tree" else {"id": found[2], "sha": commit, "siblings": []})
        elif repo.gated:
            self._error(*GATED)
        else:
            self._resolve(repo, commit, found[5])

    def _resolve(self, repo: Repo, commit: str, name: str) -> None:
        headers = {"X-Repo-Commit": commit, **self.hub.saying}
        body = repo.commits[commit].get(name)
        if body is None:
            self._error(*ABSENT, **headers)
        elif name in repo.large:
            digest = hashlib.sha256(body).hexdigest()
            linked = {"X-Linked-Size": str(len(body)), "X-Linked-Etag": f'"{digest}"'}
            location = f"{self.hub.address('storage')}/stored/{digest}"
            self._send(b"", 302, {**linked, **headers, "Location": location})
        else:
            self._content(name, body, {"ETag": f'"{git_hash(body)}"', **headers})


class _StorageHandler(_Handler):
    def answer(self, path: str) -> None:
        wanted = path.rpartition("/")[2]
        for repo in self.hub.repos.values():
            for files in repo.commits.values():
                for name in repo.large & set(files):
                    if hashlib.sha256(files[name]).hexdigest() == wanted:
                        self._content(name, files[name], {"ETag": f'"{wanted}"'})
                        return
        self._error(404, "", "no such object")

    def take(self, path: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != path.rpartition("/")[2]:
            self._error(400, "", "another content than announced")
            return
        self.hub.uploaded[path.rpartition("/")[2]] = body
        self._send(b"", 200, {})


_HANDLERS: dict[str, type[_Handler]] = {"hub": _HubHandler, "storage": _StorageHandler}


def git_hash(body: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _entry(repo: Repo, name: str, body: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(body), "oid": git_hash(body)}
    if name in repo.large:
        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
    return entry
