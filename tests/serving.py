"""A server of edgeguard in a thread, on a free port, with a tiny guard in real worker processes."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import SECONDS, until

from edgeguard.backend import RuntimeOptions
from edgeguard.serve.limits import ServeLimits
from edgeguard.serve.served import Opening
from edgeguard.serve.server import HttpServer
from edgeguard.serve.state import ServeOptions


@dataclass
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error in OpenAI's form."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["code"])


@dataclass
class Running:
    """A server that answers."""

    server: HttpServer
    lines: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return self.server.address

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)

    def ask(self, path: str, body: Any = None, *, method: str | None = None, **headers: str) -> Reply:
        """One request on a connection of its own. A body is bytes, or sent as JSON; _ in a header's name is -."""
        connection = self.connection()
        try:
            return self.on(connection, path, body, method=method, **headers)
        finally:
            connection.close()

    @staticmethod
    def on(
        connection: http.client.HTTPConnection,
        path: str,
        body: Any = None,
        *,
        method: str | None = None,
        **headers: str,
    ) -> Reply:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"content-type": "application/json"} if data is not None else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if data is None else "POST"), path, data, given)
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def opening(model: Path, profile: Path, name: str | None = None, *, workers: int = 1, **options: Any) -> Opening:
    """A tiny model to serve."""
    runtime = RuntimeOptions(threads=1)
    return Opening(name, {"model": model, "profile": profile, "runtime": runtime, "workers": workers, **options})


@contextmanager
def running(
    *openings: Opening, ready: bool = True, limits: Mapping[str, Any] | None = None, **options: Any
) -> Iterator[Running]:
    """A server while the block lasts. A tiny random guard passes no self-test, so that none is asked for."""
    given = {"self_tested": False, **options}
    lines: list[str] = []
    said: list[str] = []
    server = HttpServer(
        ServeOptions(openings, port=0, limits=ServeLimits(**(limits or {})), **given),
        write=lines.append,
        tell=said.append,
    )
    found = Running(server, lines, said, threading.Thread(target=server.run, daemon=True))
    assert found.thread is not None
    found.thread.start()
    try:
        until(lambda: (server.address and (not ready or server.state.phase == "ready")) or server.failure)
        assert server.failure is None, server.failure
        yield found
    finally:
        server.drain()
        found.thread.join(SECONDS)
        assert not found.thread.is_alive()
