"""The server over the same guard without it: rates, latencies, what hostile clients and dying workers do to the others.

    python bench/serve.py                                       # about 10 minutes on 2 quiet cores
    python bench/serve.py --parts attack --requests 10000 --tiny  # the tests' model: what it is about is the server
    python bench/serve.py --parts kill --seconds 300
    python bench/serve.py --parts peer --llama-server .venv/llama-server/bin/llama-server

`edgeguard serve` runs as users run it, as a process; the clients are threads of this one, on loopback, and share the
cores with it. In-process is `Workers.score_many` with as many workers. All have loaded before the clock runs, and
take turns within a round: read the ratios, not the rates. Every row that comes back is held against that of the guard
itself, bit for bit.

rate     connections that each send the next request when they have an answer; added latency: one request over
         `Workers.score` of the same text, in turns
attack   --clients, and 1 request in 100 hostile: broken JSON, 10 MB, half a body, hung up, wrong keys
kill     `kill -9` of a worker every 5 seconds
grow     a conversation, sentence by sentence, with a session, over as many tokens from nothing; with --batch 64
peer     llama-server with as many requests at once, read by a script that makes P(unsafe) of `n_probs`
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import common
import numpy as np

from edgeguard import Workers

PARTS = ("rate", "attack", "kill", "grow")
KEY = "a key of the bench's own".replace(" ", "-")
CONNECTIONS = (1, 4, 16, 64)
KILL_EVERY = 5.0  # seconds
SENTENCES = (
    "First warm the milk and stir the yeast into it. ", "Then rub the butter into the flour with your fingers. ",
    "Leave the dough under a cloth until it has doubled. ", "Some people add a spoon of honey, others do not. ",
    "My neighbour puts a bowl of water beside it. ", "Bake it until the crust sounds hollow when you knock. ",
)  # fmt: skip


class Client:
    """One kept connection, with as little Python as it takes: the clients' time is the server's too."""

    def __init__(self, port: int) -> None:
        self._port, self._socket = port, None

    def ask(self, body: bytes, path: str = "/v1/score", key: str = KEY) -> tuple[int, Any]:
        """(status, JSON). Connects where it must; OSError where the connection ends before the answer."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=120)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-api-key: {key}\r\n"
        try:
            self._socket.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            return self._answer()
        except OSError:
            self.close()
            raise

    def _answer(self) -> tuple[int, Any]:
        assert self._socket is not None
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, rest = data.partition(b"\r\n\r\n")
        fields = head.decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in fields if line.startswith("content-length"))
        while len(rest) < length:
            rest += self._more()
        if "connection: close" in fields:
            self.close()
        return int(fields[0].split()[1]), json.loads(rest)

    def _more(self) -> bytes:
        assert self._socket is not None
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError
        return data

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


class Served:
    """`edgeguard serve` as a process."""

    def __init__(self, folder: Path, *options: str) -> None:
        keys = folder / "keys"
        keys.write_text(f"bench {KEY}\n")
        command = [sys.executable, "-m", "edgeguard", "serve", "--port", "0", "--api-key-file", str(keys), *options]
        self.process = subprocess.Popen(command, env=common.environment(), stderr=subprocess.PIPE, text=True)
        self.port = 0
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "listening on" in line:
                self.port = int(line.split("listening on ")[1].split(",")[0].rpartition(":")[2])
            if ": ready:" in line or "edgeguard: ready" in line:
                break
        else:
            raise SystemExit(f"{' '.join(command)} ended with {self.process.wait()}")
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for _ in self.process.stderr:
            pass

    def workers(self) -> list[int]:
        """Process ids."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        return [int(one) for one, parent in map(str.split, listed.splitlines()) if int(parent) == self.process.pid]

    def memory(self) -> float:
        """MiB of RSS: the server's, without its workers'."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def close(self) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self.process.kill()
        self.process.wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "peer"), default=PARTS)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="[default: cores]")
    parser.add_argument("--records", type=int, default=16, help="different texts, a round of `rate` [default: 16]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=600, help="of `attack` [default: 600]")
    parser.add_argument("--seconds", type=float, default=30.0, help="of `kill` [default: 30]")
    parser.add_argument("--llama-server", type=Path, default=None, help="the binary, for `peer`")
    parser.add_argument("--tiny", action="store_true", help="the tests' random model in place of the default guard")
    args = parser.parse_args()
    with made(args.tiny) as subject:
        measure(args, subject)


@contextmanager
def made(tiny: bool) -> Iterator[dict[str, Any]]:
    """What a guard is opened with: nothing for the default one."""
    if not tiny:
        yield {}
        return
    from conftest import BIAS, TINY_PROFILE
    from tiny_gguf import write_tiny_llama

    with tempfile.TemporaryDirectory() as folder:
        write_tiny_llama(f"{folder}/tiny.gguf", n_ctx=1024, logit_std=1.0, bias=BIAS)
        Path(folder, "tiny.toml").write_text(TINY_PROFILE, encoding="utf-8")
        yield {"model": f"{folder}/tiny.gguf", "profile": f"{folder}/tiny.toml"}


def measure(args: argparse.Namespace, subject: dict[str, Any]) -> None:
    """All parts that were asked for."""
    texts = common.texts_between(args.records, 80, 300)
    print(f"{common.machine()}; {args.workers} workers of one thread; texts of 80 to 300 characters")
    model = [word for name, value in subject.items() for word in (f"--{name}", value)]
    model += ["--skip-self-test"] if subject else []
    options = ["--workers", str(args.workers), *model]
    with started("rate" in args.parts, *options) as served, Workers(workers=args.workers, **subject) as workers:
        rows = {
            text: json.loads(json.dumps(result.row()))
            for text, result in zip(texts, scored(workers, texts), strict=True)
        }
        if "rate" in args.parts:
            rates(served, workers, texts[: args.records], rows, args.rounds)
        for part, show in (("attack", attack), ("kill", kill)):
            if part in args.parts:
                with fresh(*options) as one:
                    show(one, texts, rows, args)
        if "peer" in args.parts:
            peer(args)
    if "grow" in args.parts:
        with fresh("--workers", "1", "--batch", "64", *model) as one:
            grow(one, args.rounds)


@contextmanager
def fresh(*options: str) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder, closing(Served(Path(folder), *options)) as served:
        yield served


@contextmanager
def started(wanted: bool, *options: str) -> Iterator[Served | None]:
    if not wanted:
        yield None
        return
    with fresh(*options) as served:
        yield served


def scored(workers: Workers, texts: Sequence[str]) -> list[Any]:
    return list(workers.score_many(texts))


def body_of(text: str, id_: str | None = None) -> bytes:
    return json.dumps({"text": text} if id_ is None else {"id": id_, "text": text}).encode()


def checked(status: int, row: Any, expected: Any, text: str) -> None:
    if status != 200 or row != expected:
        raise SystemExit(f"{text!r} was answered with {status}, {row}, expected {expected}")


# Rates and latencies


def ask_all(port: int, texts: Sequence[str], rows: dict[str, Any] | None, n: int) -> tuple[float, list[float]]:
    """Requests a second, and the milliseconds of each, of n connections that share the texts out.

    rows  what each is to be answered with; None: some score
    """
    waiting, lock, taken = iter(texts), threading.Lock(), []
    clients = [Client(port) for _ in range(n)]
    failed: list[BaseException] = []

    def work(client: Client) -> None:
        try:
            while True:
                with lock:
                    text = next(waiting, None)
                if text is None:
                    return
                began = time.perf_counter()
                status, row = client.ask(body_of(text))
                taken.append(1000 * (time.perf_counter() - began))
                checked(status, row, row if rows is None and "flagged" in row else (rows or {}).get(text), text)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    for client in clients:
        client.close()
    if failed:
        raise failed[0]
    return len(texts) / seconds, taken


def rates(served: Served, workers: Workers, texts: list[str], rows: dict[str, Any], rounds: int) -> None:
    for n in CONNECTIONS:
        ask_all(served.port, texts[:n], rows, n)
    ratios: dict[int, list[float]] = {n: [] for n in CONNECTIONS}
    found: dict[int, list[float]] = {n: [] for n in CONNECTIONS}
    taken: dict[int, list[float]] = {n: [] for n in CONNECTIONS}
    own = []
    for _ in range(rounds):
        for n in CONNECTIONS:
            # twice around each: a machine that is slower for a while is slower for both
            before = len(texts) / common.seconds(lambda: scored(workers, texts))
            rate, milliseconds = ask_all(served.port, (texts * n)[: max(len(texts), 2 * n)], rows, n)
            after = len(texts) / common.seconds(lambda: scored(workers, texts))
            inside = 2 / (1 / before + 1 / after)
            own.append(inside)
            found[n].append(rate)
            taken[n] += milliseconds
            ratios[n].append(rate / inside)
    print(f"in-process: {common.spread(own, ' records/s')}, {rounds} rounds of {len(texts)} texts")
    for n in CONNECTIONS:
        p50, p99 = np.percentile(taken[n], [50, 99])
        print(
            f"   {n} connections: {common.spread(found[n], ' requests/s')}, p50 {p50:.1f} ms, p99 {p99:.1f} ms; "
            f"over in-process: {common.spread(ratios[n])}"
        )
    added(served, workers, texts, rows)


def added(served: Served, workers: Workers, texts: list[str], rows: dict[str, Any]) -> None:
    client, more = Client(served.port), []
    for text in texts:
        data = body_of(text)
        own = [common.seconds(lambda text=text: workers.score(text))]
        asked = []
        for _ in range(2):
            began = time.perf_counter()
            status, row = client.ask(data)
            asked.append(1000 * (time.perf_counter() - began))
            checked(status, row, rows[text], text)
            own.append(common.seconds(lambda text=text: workers.score(text)))
        more.append(min(asked) - 1000 * min(own))
    client.close()
    print(f"added latency of one request: {common.spread(more, ' ms')}")


# Hostile clients


def attack(served: Served, texts: list[str], rows: dict[str, Any], args: argparse.Namespace) -> None:
    """Every good answer carries its own id's score. SystemExit where one is crossed or lost."""
    counts: Counter[str] = Counter()
    numbers, lock, memory = iter(range(args.requests)), threading.Lock(), dict[int, float]()
    failed: list[BaseException] = []

    def work(k: int) -> None:
        client, draw = Client(served.port), random.Random(k)
        try:
            while True:
                with lock:
                    i = next(numbers, None)
                if i is None:
                    return
                if i % 100 == 99:
                    counts[hostile(served.port, draw)] += 1
                else:
                    counts[good(client, texts[draw.randrange(len(texts))], f"{k}-{i}", rows)] += 1
                if i % max(1, args.requests // 10) == 0:
                    memory[i] = served.memory()
        except BaseException as error:
            failed.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(args.clients)]
    seconds = common.seconds(lambda: [[t.start() for t in threads], [t.join() for t in threads]])
    if failed:
        raise failed[0]
    first = min(i for i in memory if i >= min(1000, args.requests // 10))
    print(f"attack: {args.clients} clients, {args.requests} requests in {seconds:.0f} s")
    for what, n in sorted(counts.items()):
        print(f"   {what}: {n}")
    print(
        f"   none crossed, none lost; the server's memory: {memory[first]:.0f} MiB after {first} requests, "
        f"{served.memory():.0f} MiB after all"
    )


def good(client: Client, text: str, id_: str, rows: dict[str, Any]) -> str:
    while True:
        status, row = client.ask(body_of(text, id_))
        if status != 429:
            break
        time.sleep(0.2)
    checked(status, row, {**rows[text], "id": id_}, text)
    return "good requests, each with its own id's score"


def hostile(port: int, draw: random.Random) -> str:
    """One bad request on a connection of its own, and what it is called; it must not get a score."""
    kind = draw.choice(["broken JSON", "10 MB", "half a body", "hung up", "wrong key"])
    client = Client(port)
    with suppress(OSError):
        if kind in ("half a body", "hung up"):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
                body = body_of("a text")
                head = f"POST /v1/score HTTP/1.1\r\nhost: localhost\r\nx-api-key: {KEY}\r\n"
                head += "content-type: application/json\r\n"
                sock.sendall(
                    f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[: 4 if kind[0] == "h" else None]
                )
                if kind == "half a body":
                    time.sleep(1.0)
            return kind
        body = {"broken JSON": b'{"text": "a', "10 MB": b"x" * (10 << 20), "wrong key": body_of("a")}[kind]
        status, said = client.ask(body, key=KEY[:-1] if kind == "wrong key" else KEY)
        if status == 200 or "error" not in said:
            raise SystemExit(f"{kind} was answered with {status}, {said}")
    client.close()
    return kind


# Dying workers


def kill(served: Served, texts: list[str], rows: dict[str, Any], args: argparse.Namespace) -> None:
    until, counts, killed = time.monotonic() + args.seconds, Counter[int](), 0
    failed: list[BaseException] = []

    def work(k: int) -> None:
        client, draw = Client(served.port), random.Random(k)
        try:
            while time.monotonic() < until:
                text = texts[draw.randrange(len(texts))]
                status, row = client.ask(body_of(text))
                counts[status] += 1
                if status == 200:
                    checked(status, row, rows[text], text)
                elif "flagged" in row:
                    raise SystemExit(f"an answer of status {status} has a score: {row}")
        except BaseException as error:
            failed.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    while time.monotonic() + KILL_EVERY < until:
        time.sleep(KILL_EVERY)
        pids = served.workers()
        with suppress(ProcessLookupError, IndexError):
            os.kill(random.choice(pids), signal.SIGKILL)
            killed += 1
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    total = counts.total()
    print(
        f"kill -9 of a worker every {KILL_EVERY:g} s, {killed} in all, 8 clients: {counts[200]} of {total} requests "
        f"answered ({100 * counts[200] / total:.2f} %), no wrong answer; others: "
        f"{', '.join(f'{n} × {status}' for status, n in counts.items() if status != 200) or 'none'}"
    )


# A conversation that grows


def grow(served: Served, rounds: int) -> None:
    """The n-th sentence with a session, over as many tokens of which nothing is there."""
    client, n = Client(served.port), 24
    ratios: dict[int, list[float]] = {k: [] for k in range(1, n + 1)}
    tokens: dict[int, int] = {}
    for k in range(rounds):
        answer = ""
        for i in range(1, n + 1):
            answer += SENTENCES[(i + k) % len(SENTENCES)]
            record = {"prompt": f"How do I bake bread, try {900 + k}?", "response": answer.strip()}
            other = {**record, "prompt": f"How do I bake bread, try {100 + n * k + i}?"}  # begins like no other record
            began = time.perf_counter()
            _, grown = client.ask(json.dumps({**record, "session": f"bench {k}"}).encode())
            cost = time.perf_counter() - began
            began = time.perf_counter()
            client.ask(json.dumps(other).encode())
            ratios[i].append(cost / (time.perf_counter() - began))
            status, anew = client.ask(json.dumps(record).encode())
            checked(status, grown, anew, record["response"])
            tokens[i] = anew["tokens"]["prompt"]
    client.close()
    print("a conversation that grows, with --batch 64: the n-th sentence over as many tokens from nothing")
    for i in (2, 6, 12, 18, 24):
        print(f"   sentence {i}, {tokens[i]} tokens: {common.spread(ratios[i])}")


# A peer


def peer(args: argparse.Namespace) -> None:
    """llama-server's records a second with as many at once: the same prompts, P(unsafe) alone."""
    from peers import default_model, prepared
    from servers import LlamaServer, version_of

    if args.llama_server is None:
        raise SystemExit("`peer` needs --llama-server BINARY; bench/build_llama_server.sh builds one")
    model = default_model()
    n, at_once = args.rounds * args.records, 4
    subject = prepared(model, "edgeguard-135m", None, n + at_once, args.workers)
    slots = max(1, at_once // args.workers)
    shape = {"processes": args.workers, "slots": slots, "threads": 1, "context": 1024}
    their = LlamaServer(args.llama_server, model, subject.words, **shape)
    ratios, ours, theirs = [], [], []
    with closing(their), fresh("--workers", str(args.workers)) as one:
        their.verdicts(subject.asked[:at_once])
        for r in range(args.rounds):
            some = subject.asked[at_once + r * args.records : at_once + (r + 1) * args.records]
            taken = common.seconds(lambda some=some: their.verdicts(some))
            rate, _ = ask_all(one.port, [asked.text for asked in some], None, at_once)
            ours.append(rate)
            theirs.append(len(some) / taken)
            ratios.append(rate * taken / len(some))
    print(f"llama-server {version_of(args.llama_server)} and a script, {at_once} at once:")
    print(f"   edgeguard serve {common.spread(ours, ' records/s')}, every category with bounds")
    print(f"   llama-server {common.spread(theirs, ' records/s')}, P(unsafe) alone; ratio {common.spread(ratios)}")


if __name__ == "__main__":
    main()
