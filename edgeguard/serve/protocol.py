"""uvicorn's HTTP protocols, with what they lack against slow clients and too many."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

from edgeguard.serve.gate import ABORT, App, Receive, Scope, Send
from edgeguard.serve.refusal import Refusal


def http_protocol(*, head_seconds: float, connections: int) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn: httptools' where that is installed, else h11's.

    head_seconds  in which the head of a connection's next request must have come, once it has begun; of its first
                  request, from the connection on
    connections   open at once; one more hears 503 and is closed
    """
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Base
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Base  # type: ignore[assignment]

    class Bounded(Base):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > connections:
                transport.write(_too_many(connections))
                transport.close()
                return
            self.app = functools.partial(_with_abort, self.app, transport.abort)
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if self._late is None and (before is None or before.response_complete):
                self._wait_for_head()
            super().data_received(data)
            if self.cycle is not before:
                self._have_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._have_head()
            super().connection_lost(exc)

        def _wait_for_head(self) -> None:
            self._late = self.loop.call_later(head_seconds, self.transport.abort)

        def _have_head(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Bounded


async def _with_abort(app: App, abort: Any, scope: Scope, receive: Receive, send: Send) -> None:
    scope[ABORT] = abort
    await app(scope, receive, send)


def _too_many(connections: int) -> bytes:
    said = Refusal(503, "too_many_connections", f"{connections} connections are open, as many as this server takes")
    body = json.dumps(said.body()).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
