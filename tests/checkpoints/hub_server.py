"""A small hub on the loopback: the routes that the hub's library and Octavo use, a second address as its CDN, and
faults on order. Every request is kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

API = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?$")
RESOLVE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")
LARGE = (".gguf", ".safetensors", ".bin")  # kept in LFS, delivered by the CDN


@dataclass
class Repo:
    """files: name -> content of one commit; revisions: branch or tag -> commit."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    token: str = ""  # what opens it, where it is gated or private
    private: bool = False
    stated: dict[str, bytes] = field(default_factory=dict)  # contents that the listing describes instead of `files`


@dataclass(frozen=True)
class Seen:
    """One request: `where` is hub or cdn."""

    where: str
    method: str
    path: str
    range: str | None
    token: str | None


class Hub:
    """The two servers. cut: file -> after how many bytes each of the next answers breaks off; busy: statuses, with the
    Retry-After, that the next requests get; no_ranges: Range is not understood."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.seen: list[Seen] = []
        self.cut: dict[str, list[int]] = {}
        self.busy: list[tuple[str, int, float]] = []  # where, status, seconds
        self.no_ranges = False
        self.hold = threading.Event()  # downloads wait for it
        self.hold.set()
        handlers = [type("Handler", (Handler,), {"hub": self, "where": where}) for where in ("hub", "cdn")]
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in handlers]
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self.servers)

    def close(self) -> None:
        self.hold.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def asked(self, where: str, method: str = "GET") -> list[str]:
        """The paths of requests, in order."""
        return [each.path for each in self.seen if (each.where, each.method) == (where, method)]

    def downloads(self) -> Counter[str]:
        """How often each large file was asked for."""
        return Counter(path.rpartition("/")[2] for path in self.asked("cdn"))


class Handler(BaseHTTPRequestHandler):
    """One of the two addresses: `where` is hub or cdn."""

    hub: Hub
    where: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path = urlsplit(self.path).path
        self.hub.seen.append(Seen(self.where, self.command, path, self.headers.get("Range"), token))
        for i, (place, status, seconds) in enumerate(self.hub.busy):
            if place == self.where:
                del self.hub.busy[i]
                return self.refuse(status, "", "", {"Retry-After": f"{seconds:g}"} if seconds else {})
        if self.where == "cdn":
            self.hub.hold.wait(30)
            repo, _, name = path.removeprefix("/cdn/").partition("!")
            return self.deliver(name, self.hub.repos[unquote(repo)].files[unquote(name)])
        if found := API.match(path):
            return self.listing(found, token)
        if found := RESOLVE.match(path):
            return self.resolve(found, token)
        return self.refuse(404, "", "not a route")

    def allowed(self, repo: Repo | None, token: str | None) -> bool:
        if repo is None or (repo.private and token != repo.token):
            code = "" if token is None else "RepoNotFound"
            self.refuse(401 if token is None else 404, code, "Repository not found")
            return False
        if token == "unknown":
            self.refuse(401, "", "Invalid credentials in Authorization header")
            return False
        return True

    def listing(self, found: re.Match[str], token: str | None) -> None:
        repo = self.hub.repos.get(found["repo"])
        if not self.allowed(repo, token):
            return
        assert repo is not None
        if unquote(found["revision"] or "main") not in (*repo.revisions, repo.commit):
            return self.refuse(404, "RevisionNotFound", "Invalid rev id")
        siblings = []
        for name, content in {**repo.files, **repo.stated}.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            each: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith(LARGE):
                digest = hashlib.sha256(content).hexdigest()
                each["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(each)
        body = {"_id": "1", "id": found["repo"], "modelId": found["repo"], "sha": repo.commit,
                "siblings": siblings, "private": repo.private, "gated": repo.gated, "downloads": 0, "likes": 0,
                "tags": []}  # fmt: skip
        self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def resolve(self, found: re.Match[str], token: str | None) -> None:
        repo = self.hub.repos.get(found["repo"])
        if not self.allowed(repo, token):
            return
        assert repo is not None
        if repo.gated and token != repo.token:
            return self.refuse(401 if token is None else 403, "GatedRepo", "Access to this model is restricted")
        name = unquote(found["file"])
        if name not in repo.files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        content, more = repo.files[name], {"X-Repo-Commit": repo.commit}
        if name.endswith(LARGE):
            more |= {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"'}
            more |= {"X-Linked-Size": str(len(content))}
            return self.answer(302, b"", more | {"Location": f"{self.hub.cdn}/cdn/{found['repo']}!{found['file']}"})
        self.deliver(name, content)

    def deliver(self, name: str, content: bytes) -> None:
        start, status, more = 0, 200, {"Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked and not self.hub.no_ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self.refuse(416, "", "", {"Content-Range": f"bytes */{len(content)}"})
            status = 206
            more["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        left = self.hub.cut.get(name)
        self.answer(status, content[start:], more, left.pop(0) if left else None)

    def refuse(self, status: int, code: str, why: str, more: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": why}
        self.answer(status, b"", {k: v for k, v in named.items() if v} | (more or {}))

    def answer(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked has gone
            if self.command != "HEAD":
                self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    made = Hub()
    try:
        yield made
    finally:
        made.close()
