"""The server as a process: it listens, loads, serves, reads its files again at SIGHUP, and ends in order."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn

from edgeguard.errors import EdgeguardError, ModelError, ProfileError
from edgeguard.serve.app import make_app
from edgeguard.serve.protocol import http_protocol
from edgeguard.serve.state import ServeOptions, State

_LINES = 10_000  # of the log that wait to be written
_TICK = 0.02  # seconds


def serve(options: ServeOptions, *, write: Callable[[str], None], tell: Callable[[str], None]) -> int:
    """Serve until SIGTERM or Ctrl-C: 0, or 130 after Ctrl-C. Raises EdgeguardError where it cannot begin.

    write  takes a line of the log, JSON, in a thread of its own; tell: a line for people
    """
    server = HttpServer(options, write=write, tell=tell)
    server.run()
    if server.failure is not None:
        raise server.failure
    return 130 if server.interrupted else 0


class HttpServer(uvicorn.Server):
    """One server. `run` returns when it has ended.

    address      where it listens, as a URL; "" until it does
    failure      why it could not begin
    interrupted  Ctrl-C ended it
    """

    def __init__(self, options: ServeOptions, *, write: Callable[[str], None], tell: Callable[[str], None]) -> None:
        self._log = _Log(write)
        self.state = State(options, self._log.add, tell)
        check_exposure(options)
        self.state.read_files()
        limits = options.limits
        super().__init__(
            uvicorn.Config(
                make_app(self.state),
                http=http_protocol(head_seconds=limits.body_seconds, connections=limits.connections),
                loop="auto",
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(limits.idle_seconds),
                timeout_graceful_shutdown=1,
            )
        )
        self._tell = tell
        self._socket = _listening(options.host, options.port)
        self._background: set[asyncio.Task[None]] = set()
        self.address = ""
        self.failure: EdgeguardError | None = None
        self.interrupted = self._draining = False

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve. The workers are ended when it returns, however it does."""
        try:
            super().run([self._socket])
        finally:
            self._socket.close()
            self.state.close()
            self._log.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and begin to load: who asks meanwhile hears that it is loading."""
        await super().startup(sockets)
        host, port = self._socket.getsockname()[:2]
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._tell(f"listening on {self.address}, loading")
        self._loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            self._loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._start(self._load())

    def reload(self) -> None:
        """Read the policies and the keys again; from any thread, once it listens."""
        if self.state.phase == "loading":
            self._tell("still loading: nothing was read again")
            return
        self._loop.call_soon_threadsafe(lambda: self._start(self.state.reload()))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C: finish what is at hand; a second one: end at once."""
        self.interrupted = self.interrupted or sig == signal.SIGINT
        if self.state.phase == "draining":
            self.should_exit = self.force_exit = True
            return
        loading, self.state.phase = self.state.phase == "loading", "draining"
        if loading:
            self.should_exit = True

    def drain(self) -> None:
        """The same from another thread, or a test."""
        self.handle_exit(signal.SIGTERM, None)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: all is answered, or there was no more time for it."""
        if self.state.phase == "draining" and not self.should_exit and not self._draining:
            self._draining = True
            self._start(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.state.options.limits.drain_seconds
        self._tell(f"ending: {self.state.in_hand} requests are finished, new ones refused")
        while self.state.in_hand and loop.time() < until and not self.should_exit:
            await asyncio.sleep(_TICK)
        if self.state.in_hand:
            self._tell(f"{self.state.in_hand} requests were not finished in time")
        self.should_exit = True

    async def _load(self) -> None:
        try:
            await self.state.load()
        except EdgeguardError as error:
            self.failure, self.should_exit = error, True
        except Exception as error:
            self.failure, self.should_exit = ModelError(f"the models could not be loaded: {error!r}"), True
        else:
            for name, served in self.state.served.items():
                self._tell(f"ready: {name}, {served.workers.workers} processes, self-test {served.self_test}")

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def check_exposure(options: ServeOptions) -> None:
    """Refuse to listen for other machines without keys. Raises ProfileError."""
    if options.api_key_file is None and not options.is_local:
        raise ProfileError(
            f"on {options.host} other machines can reach the server, and it has no keys; give it a file of keys, or "
            "listen on 127.0.0.1",
            kind="no_keys",
        )


def _listening(host: str, port: int) -> socket.socket:
    """Raises ModelError where nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, since asyncio sends small answers at once (TCP_NODELAY) only where a socket says that it is TCP: else the
    # end of each waits for the client's delayed acknowledgement, some 40 ms.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        why = getattr(error, "strerror", None) or error
        raise ProfileError(f"nothing can listen on {host} port {port}: {why}", kind="cannot_listen") from None
    return found


class _Log:
    """Lines go to `write` in a thread: a log that nobody reads must not stop the server. Lost ones are counted.

    The thread looks for lines by itself, some times a second: waking it for each would cost more than the line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._lost = write, 0
        self._lines: deque[Mapping[str, Any]] = deque()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, line: Mapping[str, Any]) -> None:
        """Have it written soon."""
        if len(self._lines) >= _LINES:
            self._lost += 1
            return
        self._lines.append({**line, "lines_lost": self._lost} if self._lost else line)
        self._lost = 0

    def close(self) -> None:
        """Write what waits, for as long as that takes a moment."""
        self._closed.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._closed.wait(_TICK):
            self._write_all()
        self._write_all()

    def _write_all(self) -> None:
        while self._lines:
            with suppress(OSError, ValueError):  # whoever read it is gone
                self._write(json.dumps(self._lines.popleft(), ensure_ascii=False))
