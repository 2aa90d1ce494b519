"""A small hub on loopback: what huggingface_hub asks for of a repository, with the ways in which it goes wrong."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 1 << 12  # bytes from which a file is kept apart, as LFS does: it is listed with its sha256


@dataclass
class Repo:
    """name → bytes, at one commit; revisions → their commits."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    revisions: tuple[str, ...] = ("main",)
    refuses: int | None = None  # 401 or 403: gated; 404: not there
    lists_instead: dict[str, bytes] = field(default_factory=dict)  # of these bytes it says the hash


class Hub:
    """Repositories by name. What it was asked is in `asked`: (method, path, Range).

    breaks_after  bytes of a file, after which the connection is cut; once for each file
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.breaks_after: int | None = None
        self.broken: set[str] = set()
        self.endpoint = ""

    def downloads(self) -> list[str]:
        """Files whose bytes were asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        to = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    to: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.to.asked.append((self.command, path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        repo = self.to.repos.get(found[1]) if found else None
        if found is None or repo is None or repo.refuses == 404:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif repo.refuses is not None:
            self._refuse(repo.refuses, "GatedRepo", "Access to this model is restricted")
        elif (found[2] or "main") not in (*repo.revisions, repo.commit):
            self._refuse(404, "RevisionNotFound", "Revision not found")
        elif api:
            self._list(found[1], repo)
        elif found[3] not in repo.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._send(found[3], repo)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._reply(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _list(self, name: str, repo: Repo) -> None:
        siblings = [sibling(file, repo.lists_instead.get(file, data)) for file, data in repo.files.items()]
        about: dict[str, Any] = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings}
        body = json.dumps({**about, "private": False, "tags": [], "downloads": 0, "likes": 0}).encode()
        self._reply(200, body, {"Content-Type": "application/json"})

    def _send(self, file: str, repo: Repo) -> None:
        data = repo.files[file]
        large = len(data) >= LARGE
        etag = hashlib.sha256(data).hexdigest() if large else git_blob(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        begin = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status, part = 200, data
        if begin:
            end = int(begin[2]) + 1 if begin[2] else len(data)
            status, part = 206, data[int(begin[1]) : end]
            headers["Content-Range"] = f"bytes {begin[1]}-{end - 1}/{len(data)}"
        cut = self.to.breaks_after
        if self.command == "GET" and cut is not None and large and file not in self.to.broken:
            self.to.broken.add(file)
            self._reply(status, part[:cut], headers, length=len(part))
            self.close_connection = True
            return
        self._reply(status, part, headers)

    def _reply(self, status: int, body: bytes, headers: dict[str, str], *, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body) if length is None else length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()

    def log_message(self, *_: object) -> None: ...


def sibling(file: str, data: bytes) -> dict[str, Any]:
    """A file as the API lists it."""
    found: dict[str, Any] = {"rfilename": file, "size": len(data), "blobId": git_blob(data)}
    if len(data) >= LARGE:
        found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
