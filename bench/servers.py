"""The peers of bench/peers.py: each is started, asked over HTTP by as many connections as it has places, and ended."""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

N_PROBS = 10
START_SECONDS = 120


@dataclass(frozen=True)
class Asked:
    """A text, and the prompt in which the guard is asked about it, as tokens."""

    text: str
    ids: tuple[int, ...]


class Peer(Protocol):
    """Something that is running. `verdicts`: P(unsafe), a number for each text, nan where it says none."""

    def verdicts(self, asked: Sequence[Asked]) -> list[float]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Words:
    """How a guard's answers may begin, on each side of its verdict, and how many tokens are looked at."""

    unsafe: frozenset[str]
    safe: frozenset[str]
    n_tokens: int

    def verdict(self, places: Sequence[Mapping[str, Any]]) -> float:
        """P(unsafe) against P(safe), as users read it: where first both are among the likeliest tokens; else nan."""
        for place in places:
            unsafe, safe = (_mass(place["top_logprobs"], words) for words in (self.unsafe, self.safe))
            if unsafe > 0 and safe > 0:
                return unsafe / (unsafe + safe)
        return math.nan


def _mass(top: Sequence[Mapping[str, Any]], words: frozenset[str]) -> float:
    begun = [t for t in top if t["token"].strip() and any(word.startswith(t["token"].strip()) for word in words)]
    return sum(math.exp(t["logprob"]) for t in begun)


class LlamaServer:
    """llama-server processes on one model, with their connections open."""

    def __init__(
        self, binary: Path, model: Path, words: Words, *, processes: int, slots: int, threads: int, context: int
    ) -> None:
        """Start and wait for it. context: tokens a slot. SystemExit where it does not start."""
        self._words, self._processes, self._connections = words, [], []
        options = ["-m", str(model), "-np", str(slots), "-c", str(slots * context), "-t", str(threads)]
        # No text comes twice, so whole prompts that are put away in RAM are never found again: it only costs.
        options += ["-tb", str(threads), "--host", "127.0.0.1", "--cache-ram", "0"]
        try:
            for _ in range(processes):
                port = free_port()
                self._processes.append(started([str(binary), *options, "--port", str(port)], dict(os.environ)))
                wait_until_healthy(self._processes[-1], port)
                self._connections += [http.client.HTTPConnection("127.0.0.1", port) for _ in range(slots)]
        except BaseException:
            self.close()
            raise

    def verdicts(self, asked: Sequence[Asked]) -> list[float]:
        return shared_out(self._connections, asked, self._ask)

    def _ask(self, connection: http.client.HTTPConnection, one: Asked) -> float:
        request = {
            "prompt": one.ids,
            "n_predict": self._words.n_tokens,
            "n_probs": N_PROBS,
            "temperature": 0,
            "cache_prompt": True,
            "response_fields": ["completion_probabilities"],
        }
        return self._words.verdict(post(connection, "/completion", request)["completion_probabilities"])

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.wait()


class TypedGguf:
    """`typed-gguf serve`, and the process that it keeps the model in, in a data home of its own.

    It puts a prompt of its own: a policy, where there is one, is the state that is evaluated once and kept, and the
    text the question; without a policy the text is the state.
    """

    def __init__(self, python: Path, libraries: Path, model: Path, policy: str, *, threads: int, places: int) -> None:
        """python: one that has typed-gguf. libraries: a folder with libllama.so, in place of the bundle it fetches."""
        self._home = tempfile.TemporaryDirectory()
        self._env = {**os.environ, "TYPED_GGUF_HOME": self._home.name, "TYPED_GGUF_RUNTIME_DIR": str(libraries)}
        self._command = [str(python), "-m", "typed_gguf"]
        self._options = {"threads": threads, "backend": "cpu"}
        self._model, self._policy = str(model), policy
        self._connections = []
        port = free_port()
        self._process = started([*self._command, "serve", "--port", str(port)], self._env)
        try:
            wait_until_healthy(self._process, port)
            self._connections += [http.client.HTTPConnection("127.0.0.1", port) for _ in range(places)]
        except BaseException:
            self.close()
            raise

    def verdicts(self, asked: Sequence[Asked]) -> list[float]:
        return shared_out(self._connections, asked, self._ask)

    def _ask(self, connection: http.client.HTTPConnection, one: Asked) -> float:
        question = "Is this message unsafe?"
        request: dict[str, Any] = {"model": self._model, "state": one.text, "options": self._options}
        if self._policy:
            kept = {**self._options, "state_id": "policy", "save_state": True}
            request |= {"state": self._policy, "options": kept}
            question += f"\n\n{one.text}"
        request["questions"] = {"unsafe": {"type": "noul", "instructions": question}}
        return float(post(connection, "/v1/decide", request)["answers"]["unsafe"]["noul"])

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._process.kill()
        self._process.wait()
        subprocess.run([*self._command, "keep", "stop"], env=self._env, capture_output=True, timeout=30)
        self._home.cleanup()


def version_of(binary: Path) -> str:
    """What `--version` says, its first line."""
    try:
        done = subprocess.run([str(binary), "--version"], capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"{binary} cannot be run: {error}; bench/build_llama_server.sh builds one") from None
    if done.returncode:
        raise SystemExit(f"{binary} --version ended with {done.returncode}: {done.stderr.strip()}")
    lines = (done.stdout + done.stderr).splitlines()
    return next(line for line in lines if line.startswith("version")).removeprefix("version: ")


def typed_version(python: Path) -> str:
    """typed-gguf's, of a Python that has it."""
    command = [str(python), "-c", "import typed_gguf; print(typed_gguf.__version__)"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{python} has no typed-gguf: {done.stderr.strip()}")
    return done.stdout.strip()


def shared_out(connections: Sequence[http.client.HTTPConnection], asked: Sequence[Asked], ask: Any) -> list[float]:
    """A number for each, in order; each connection takes the next one as soon as it has an answer."""
    found, waiting, lock = [math.nan] * len(asked), iter(range(len(asked))), threading.Lock()
    errors: list[BaseException] = []

    def work(connection: http.client.HTTPConnection) -> None:
        connection.close()  # servers end connections that were idle for some seconds; the next request opens it anew
        try:
            while not errors:
                with lock:
                    i = next(waiting, None)
                if i is None:
                    return
                found[i] = ask(connection, asked[i])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def post(connection: http.client.HTTPConnection, path: str, request: Mapping[str, Any]) -> Any:
    """The answer. SystemExit where it is none."""
    connection.request("POST", path, json.dumps(request), {"Content-Type": "application/json"})
    response = connection.getresponse()
    said = response.read()
    if response.status != 200:
        raise SystemExit(f"{path} answered {response.status}: {said.decode(errors='replace')[:500]}")
    return json.loads(said)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def started(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A server whose words go nowhere: started by hand it says what is wrong."""
    try:
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise SystemExit(f"{command[0]} cannot be run: {error}") from None


def wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    """Until its model is loaded. SystemExit where it ends before, or takes two minutes."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(map(str, process.args))} ended with {process.returncode}")  # type: ignore[arg-type]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise SystemExit(f"{' '.join(map(str, process.args))} is not up after {START_SECONDS} s")  # type: ignore[arg-type]
