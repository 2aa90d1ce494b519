"""What every request passes before a route sees it: who may ask, how much, for how long; and its line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from edgeguard.serve.page_files import page_files
from edgeguard.serve.refusal import Refusal, where
from edgeguard.serve.state import State, is_loopback
from edgeguard.serve.trail import Trail, request_id

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TRAIL, ABORT = "edgeguard.trail", "edgeguard.abort"  # keys of a scope: the request's Trail; ends its connection
SCORING = ("/v1/moderations", "/v1/chat/moderations", "/v1/score", "/beta/litellm_basic_guardrail_api")
ROUTES = (*SCORING, "/v1/models", "/health", "/ready", "/metrics", *page_files())
_PUBLIC = ("/health", "/ready", *page_files())
_GONE = 499  # a client that hung up, as nginx logs it
_DISCARDED, _DISCARD_SECONDS = 64 << 20, 2.0  # of a body that is too large, so that its sender hears why
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?\Z")
_log = logging.getLogger("edgeguard.serve")


class _HungUp(Exception):
    """The client is gone."""


class Gate:
    """An ASGI middleware. What a route raises is answered here, as the gate's own refusals are."""

    def __init__(self, app: App, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, whatever comes of it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        client = (scope.get("client") or ("",))[0]
        trail = Trail(request_id(headers.get("x-request-id")), scope["method"], scope["path"], client)
        trail.texts = [] if self._state.options.log_text else None
        scope[TRAIL] = trail
        answer = _Answer(send, trail)
        self._state.in_hand += 1
        self._state.metrics.in_hand(self._state.in_hand)
        try:
            await self._serve(scope, headers, receive, answer)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except _HungUp:
            trail.status, trail.code = _GONE, "hung_up"
        except Exception as error:
            kind = type(error).__name__
            _log.error("request %s failed: %s", trail.id, where(error))
            await answer.refuse(
                Refusal(
                    500, "server_error", f"the request failed in a way nobody foresaw ({kind}); its id is {trail.id}"
                )
            )
        finally:
            self._state.in_hand -= 1
            self._over(trail)
            if answer.began and not answer.done and ABORT in scope:
                scope[ABORT]()

    def _over(self, trail: Trail) -> None:
        metrics = self._state.metrics
        metrics.in_hand(self._state.in_hand)
        metrics.request(_label(trail.path), trail.status, trail.seconds)
        if trail.code is not None:
            metrics.refused(trail.code)
        self._state.log(trail.line())

    async def _serve(self, scope: Scope, headers: Mapping[str, str], receive: Receive, answer: _Answer) -> None:
        trail, state = answer.trail, self._state
        self._check_sender(scope, headers)
        if trail.path not in _PUBLIC:
            trail.key = self._check_key(headers)
        if trail.method != "POST":
            await self._app(scope, receive, answer)
            return
        if trail.path in SCORING:
            self._check_phase()
            _check_type(headers)
        body = await self._body(headers, receive)
        state.metrics.part("read", trail.seconds)
        await self._within(self._app(scope, _replayed(body), answer), receive, answer)

    def _check_sender(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """A page of another site must not reach a server on this machine, by its own name (DNS rebinding) or ours."""
        options = self._state.options
        host = headers.get("host", "")
        match = _HOST.match(host)
        name = match[1].strip("[]").lower() if match else ""
        expected = (
            options.allow_hosts if not options.is_local else (*options.allow_hosts, "localhost, 127.0.0.1 or ::1")
        )
        known = name in options.allow_hosts or (options.is_local and is_loopback(name))
        if (options.is_local or options.allow_hosts) and not known:
            raise Refusal(
                403,
                "host_not_allowed",
                f"the Host header is {host[:100]!r}, expected {', '.join(expected)}",
                param="host",
            )
        origin = headers.get("origin")
        if origin is not None and origin not in (*options.origins, f"http://{host}", f"https://{host}"):
            raise Refusal(
                403,
                "origin_not_allowed",
                f"a web page of {origin[:100]!r} asks, expected this server's own, or one that it was told of",
            )

    def _check_key(self, headers: Mapping[str, str]) -> str | None:
        keys = self._state.keys
        if keys is None:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        name = keys.name_of(given)
        if name is None:
            what = "is none of this server's" if given else "is missing"
            raise Refusal(
                401, "invalid_api_key", f"the API key {what}; expected Authorization: Bearer KEY, or x-api-key: KEY"
            )
        return name

    def _check_phase(self) -> None:
        phase = self._state.phase
        if phase == "loading":
            raise Refusal(503, "loading_model", "Loading model; ask again when GET /ready says ok", retry_after=2)
        if phase == "draining":
            raise Refusal(503, "shutting_down", "this server is ending and takes no new requests", retry_after=5)

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        limits = self._state.options.limits
        length, most = headers.get("content-length", ""), limits.body_bytes
        too_large = Refusal(
            413, "body_too_large", f"the body is longer than {most} bytes, which is what this server takes; split it"
        )
        if length.isdigit() and int(length) > most:
            if "expect" not in headers:  # who expects a word first sends nothing after this one
                await _discard(receive)
            raise too_large
        try:
            async with asyncio.timeout(limits.body_seconds):
                body, whole = await _read(receive, most)
        except TimeoutError:
            raise Refusal(
                408, "slow_body", f"the body did not come within {limits.body_seconds:g} s; send it at once"
            ) from None
        if len(body) > most:
            if not whole:
                await _discard(receive)
            raise too_large
        return body

    async def _within(self, serving: Awaitable[None], receive: Receive, answer: _Answer) -> None:
        """Serve, as long as the client is there and there is time. Raises Refusal, _HungUp, and what serving raises."""
        seconds = self._state.options.limits.seconds
        task, gone = asyncio.ensure_future(serving), asyncio.ensure_future(receive())
        try:
            await asyncio.wait(
                {task, gone},
                timeout=max(0.0, seconds - answer.trail.seconds),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if task.done():
                task.result()
            elif gone.done():
                raise _HungUp
            else:
                raise Refusal(504, "too_late", f"no answer within {seconds:g} s; ask for less at once", retry_after=1)
        finally:
            gone.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


class _Answer:
    """The way to the client: knows how far the answer has come, and gives it its headers."""

    def __init__(self, send: Send, trail: Trail) -> None:
        self._send, self.trail = send, trail
        self.began = self.done = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.began, self.trail.status = True, message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.trail.id.encode()),
                (b"x-content-type-options", b"nosniff"),
                (b"cache-control", b"no-store"),
            ]
        elif message["type"] == "http.response.body":
            self.done = not message.get("more_body", False)
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with an error; an answer that has begun is broken off, so that nobody takes it for a whole one."""
        self.trail.code = refusal.code
        if self.began:
            return
        body = json.dumps(refusal.body(), ensure_ascii=False).encode("utf-8", "replace")
        headers = {**refusal.headers, "content-type": "application/json", "content-length": str(len(body))}
        if refusal.status in (408, 413):  # the rest of its body would be read as the next request
            headers["connection"] = "close"
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": refusal.status, "headers": pairs})
        await self({"type": "http.response.body", "body": body})


def _label(path: str) -> str:
    """A path for the metrics: of those that there are."""
    return path if path in ROUTES else "other"


def _check_type(headers: Mapping[str, str]) -> None:
    """JSON alone: a form or plain text is what a page of another site can send without asking."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(
            415, "not_json", f"the content type is {kind[:60]!r}, expected Content-Type: application/json", param=None
        )


def _replayed(body: bytes) -> Receive:
    """A body that has come, as a route receives it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()  # the gate sees hang-ups
        raise AssertionError

    return receive


async def _read(receive: Receive, most: int) -> tuple[bytes, bool]:
    """A body, and whether that is all of it: no more is read than tells that it is too long. Raises _HungUp."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _HungUp
        body += message.get("body", b"")
        whole = not message.get("more_body", False)
        if whole or len(body) > most:
            return bytes(body), whole


async def _discard(receive: Receive) -> None:
    """Read on for a while and keep nothing: a sender that is cut off in the middle never reads its answer."""
    until, left = time.monotonic() + _DISCARD_SECONDS, _DISCARDED
    while left > 0 and (seconds := until - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), seconds)
        except TimeoutError:
            return
        left -= len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
