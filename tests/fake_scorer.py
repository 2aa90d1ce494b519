"""A small server in the place of `edgeguard serve`: the page's files, with the headers that it is meant for, and
replies that a test says.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
# (path, body or None, headers) → (status, reply, headers)
Answer = Callable[[str, Any, dict[str, str]], tuple[int, Any, dict[str, str]]]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that stops a request hangs up."""


@contextmanager
def serve_page(answer: Answer) -> Iterator[str]:
    """The page's address. `answer` is asked for every route but the page's own files."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/") or "index.html"
            if name in TYPES:
                data = (files("edgeguard.serve") / "page" / name).read_bytes()
                self._send(200, data, {"Content-Type": f"{TYPES[name]}; charset=utf-8"})
            else:
                self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: Any) -> None:
            status, reply, headers = answer(self.path, body, {k.lower(): v for k, v in self.headers.items()})
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self._send(status, data, {"Content-Type": "application/json", **headers})

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Security-Policy": POLICY, "Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
