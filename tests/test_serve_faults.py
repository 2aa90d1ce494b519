"""What becomes of requests when workers die, clients hang up, models do not load, and the server is to end."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from processes import SECONDS, children, gone, until
from serving import Reply, Running, opening, running

pytest.importorskip("starlette")

from stub_serving import process_id, score_or_fail

from edgeguard import Guard, ModelError
from edgeguard.errors import EdgeguardError
from edgeguard.serve import served as served_module
from edgeguard.serve.server import HttpServer, _listening
from edgeguard.serve.state import ServeOptions


@pytest.fixture(scope="module")
def server(tiny_model: Path, tiny_profile: Path) -> Iterator[Running]:
    """Two workers that fail as a text says; short times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served_module, "score", score_or_fail)
        with running(opening(tiny_model, tiny_profile, workers=2), limits={"seconds": 8.0}) as found:
            yield found


def row_of(guard: Guard, text: str) -> Any:
    return json.loads(json.dumps(guard.score(text).row()))


def in_background(work: Callable[[], Any]) -> Any:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


def workers_of(server: Running) -> Any:
    return server.server.state.served["tiny"].workers


# ------------------------------------------------------------ workers


def test_a_request_that_kills_workers_gets_500_and_the_others_their_scores(
    server: Running, tiny_guard: Guard, tmp_path: Path
) -> None:
    texts = [f"text {i}" for i in range(8)]
    before = workers_of(server).deaths
    deadly = in_background(lambda: server.ask("/v1/moderations", {"input": "die"}))
    rows = [server.ask("/v1/score", {"text": text}).json for text in texts]
    assert rows == [row_of(tiny_guard, text) for text in texts]
    reply = deadly.result(SECONDS)
    assert (reply.status, reply.code) == (500, "worker_died")
    assert reply.json["error"]["type"] == "server_error"
    assert workers_of(server).deaths == before + 2
    listed = server.ask("/v1/score", ["a", "die", "b"]).json
    assert [row.get("error", {}).get("type") for row in listed] == [None, "worker_died", None]
    once = server.ask("/v1/score", {"text": f"die once {tmp_path / 'died'}"})
    assert once.status == 200 and (tmp_path / "died").exists()
    assert f'edgeguard_worker_deaths_total{{model="tiny"}} {before + 5}.0' in server.ask("/metrics").body.decode()


def test_an_idle_worker_that_was_killed_comes_back(server: Running, tiny_guard: Guard) -> None:
    pids = {workers_of(server).submit(process_id, None, worker=i).result(SECONDS) for i in (0, 1)}
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    texts = ["a", "b", "c", "d"]
    assert server.ask("/v1/score", texts).json == [row_of(tiny_guard, text) for text in texts]


def test_a_bug_is_an_error_row_that_gives_nothing_away(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    reply = server.ask("/v1/score", {"text": "bug"})
    (record,) = caplog.records
    assert "KeyError at " in record.getMessage() and "stub_serving.py" in record.getMessage()
    assert "nobody foresaw" not in caplog.text
    assert reply.status == 500 and "nobody foresaw" in reply.json["error"]["message"]
    assert "this" not in reply.json["error"]["message"]


# ------------------------------------------------------------ clients


def test_a_client_that_hangs_up_takes_its_queued_records_with_it(server: Running, tmp_path: Path) -> None:
    notes = [tmp_path / f"note{i}" for i in range(20)]
    body = json.dumps(["wait 0.4"] * 2 + [f"note {note}" for note in notes]).encode()
    head = b"POST /v1/score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-request-id: gone\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(head + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: server.server.state.queue.records == 22)
    until(lambda: server.server.state.queue.records == 0)
    assert not any(note.exists() for note in notes)
    until(lambda: any(line["request_id"] == "gone" for line in server.log()))
    line = next(line for line in server.log() if line["request_id"] == "gone")
    assert (line["status"], line["code"]) == (499, "hung_up")
    assert server.ask("/v1/score", {"text": "a"}).status == 200


def test_requests_take_turns(server: Running) -> None:
    """One with many records does not keep the others waiting until all of them are done."""
    many = in_background(lambda: server.ask("/v1/score", ["wait 0.05"] * 60))
    until(lambda: server.server.state.queue.records == 60)
    assert server.ask("/v1/score", {"text": "a"}).status == 200
    assert not many.done()
    assert many.result(SECONDS).status == 200


def test_what_takes_too_long_is_given_up(tiny_model: Path, tiny_profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_module, "score", score_or_fail)
    with running(opening(tiny_model, tiny_profile), limits={"seconds": 0.5}) as server:
        # Rows that came are whole, and it is seen that the rest did not.
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            stream(server, ["a", "wait 2"])
        reply = server.ask("/v1/score", {"text": "b"})
        assert (reply.status, reply.code) == (504, "too_late")
        assert server.server.state.queue.records == 0


def stream(server: Running, body: Any) -> Reply:
    return server.ask("/v1/score", body, accept="application/x-ndjson")


def test_rows_are_sent_as_they_come(server: Running) -> None:
    connection = server.connection()
    data = json.dumps(["a", "wait 1"]).encode()
    headers = {"content-type": "application/json", "accept": "application/x-ndjson"}
    connection.request("POST", "/v1/score", data, headers)
    response = connection.getresponse()
    began = time.monotonic()
    assert "flagged" in json.loads(response.readline())
    first = time.monotonic() - began
    assert "flagged" in json.loads(response.readline())
    assert first < 0.5 < time.monotonic() - began
    connection.close()


def test_whoever_else_asks_the_scores_are_the_same_bits(server: Running, tiny_guard: Guard) -> None:
    texts = [f"text {i} {'word ' * (i * 5 % 40)}" for i in range(40)]
    expected = {text: row_of(tiny_guard, text) for text in texts}

    def client(k: int) -> None:
        connection = server.connection()
        for i in range(k, 40, 4):
            assert server.on(connection, "/v1/score", {"text": texts[i]}).json == expected[texts[i]]
            both = [texts[i], texts[39 - i]]
            assert server.on(connection, "/v1/score", both).json == [expected[text] for text in both]
        connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(client, range(4)))


# ------------------------------------------------------------ beginning


def begun(*openings: Any, **options: Any) -> HttpServer:
    """A server that has ended by itself."""
    server = HttpServer(ServeOptions(openings, port=0, **options), write=lambda line: None, tell=lambda line: None)
    server.run()
    return server


def test_a_guard_that_does_not_tell_its_texts_apart_is_not_served(
    tiny_model: Path, tiny_profile: Path, tmp_path: Path
) -> None:
    """A random one flags as it likes: with its texts the wrong way round, or with one at every threshold."""
    failure = begun(opening(tiny_model, tiny_profile, thresholds={"default": 0.0})).failure
    assert isinstance(failure, ModelError) and failure.kind == "self_test"
    assert "tiny does not pass its self-test" in str(failure) and "the safe text is flagged" in str(failure)


def test_a_guard_that_passes_its_self_test_is_served(
    tiny_model: Path, tiny_profile: Path, tiny_guard: Guard, tmp_path: Path
) -> None:
    low, high = sorted(("Boil an egg", "Hurt the dog"), key=lambda text: tiny_guard.score(text).unsafe)
    profile = tmp_path / "passes.toml"
    text = tiny_profile.read_text(encoding="utf-8")
    profile.write_text(
        text.replace('safe = "Boil an egg"', f'safe = "{low}"').replace(
            'unsafe = "Hurt the dog"', f'unsafe = "{high}"'
        ),
        encoding="utf-8",
    )
    middle = (tiny_guard.score(low).unsafe + tiny_guard.score(high).unsafe) / 2
    thresholds = {"default": 1.0, "unsafe": middle}
    with running(opening(tiny_model, profile, thresholds=thresholds), self_tested=True) as server:
        assert server.ask("/ready").status == 200
        assert server.ask("/v1/models").json["data"][0]["meta"]["self_test"] == "passed"


def test_who_asks_before_it_is_ready_hears_so(
    tiny_model: Path, tiny_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    from edgeguard.serve import state

    opened = state.open_served

    def late(*args: Any, **options: Any) -> Any:
        go.wait(SECONDS)
        return opened(*args, **options)

    monkeypatch.setattr(state, "open_served", late)
    with running(opening(tiny_model, tiny_profile), ready=False) as server:
        for path, body in (("/health", None), ("/ready", None), ("/v1/score", {"text": "a"})):
            reply = server.ask(path, body)
            assert (reply.status, reply.code) == (503, "loading_model") and reply.headers["retry-after"] == "2"
        assert server.ask("/v1/models").json["data"] == []
        server.server.reload()
        assert "still loading" in server.said[-1]
        go.set()
        until(lambda: server.ask("/ready").status == 200)
        assert server.ask("/v1/score", {"text": "a"}).status == 200


def test_what_cannot_be_served_is_said_at_the_start(tiny_model: Path, tiny_profile: Path, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no")
    table = tmp_path / "t.toml"
    table.write_text('name = "x"\n[[category]]\nname = "a"\nsources = ["S9"]\nmatch = "same"\n')
    policies = tmp_path / "p.toml"
    policies.write_text("[policy.a]\nthresholds = { S9 = 0.5 }\n")
    quick = {"self_tested": False}
    for openings, options, says in (
        ([opening(tmp_path / "no.gguf", tiny_profile)], quick, "no.gguf"),
        ([opening(tiny_model, tiny_profile)] * 2, quick, "two models are called 'tiny'"),
        ([opening(tiny_model, tiny_profile)], {**quick, "categories": table}, '"S9", which profile tiny has not'),
        ([opening(tiny_model, tiny_profile)], {**quick, "policy_file": policies}, "S9, which profile tiny has not"),
    ):
        assert says in str(begun(*openings, **options).failure)
    for options, says in (
        ({"port": 1 << 20}, "nothing can listen"),
        ({"api_key_file": tmp_path / "none"}, "cannot be read"),
        ({"policy_file": tmp_path / "none"}, "cannot be read"),
        ({"categories": "opnai"}, "did you mean 'openai'"),
    ):
        with pytest.raises(EdgeguardError, match=says):
            HttpServer(ServeOptions((), **options), write=print, tell=print)


# ------------------------------------------------------------ ending, and the command


def test_what_is_at_hand_is_finished_and_what_is_new_refused(
    tiny_model: Path, tiny_profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_module, "score", score_or_fail)
    with running(opening(tiny_model, tiny_profile)) as server:
        kept = server.connection()
        assert server.on(kept, "/v1/score", {"text": "a"}).status == 200
        at_hand = in_background(lambda: server.ask("/v1/score", {"text": "wait 1"}))
        until(lambda: server.server.state.queue.records == 1)
        server.server.drain()
        new = server.connection()
        for connection in (kept, new):
            reply = server.on(connection, "/v1/score", {"text": "b"})
            assert (reply.status, reply.code) == (503, "shutting_down")
        assert server.ask("/ready").code == "shutting_down" and server.ask("/health").status == 200
        assert at_hand.result(SECONDS).status == 200
        kept.close()
        new.close()
    with pytest.raises(OSError):
        server.ask("/health")


Started = tuple["subprocess.Popen[str]", str, list[str]]


@pytest.fixture
def started(edgeguard_command: Callable[..., list[str]], tiny: tuple[str, ...], tmp_path: Path) -> Iterator[Started]:
    """`edgeguard serve` as a process: it, its address, and its lines so far."""
    policies = tmp_path / "policies.toml"
    policies.write_text("[policy.all]\nthresholds = { default = 0.0 }\n")
    options = ("--port", 0, "--skip-self-test", "--workers", 2, "--policy-file", policies, "--drain", 5)
    process = subprocess.Popen(edgeguard_command("serve", *options, *tiny), stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert process.stderr is not None
    stderr = process.stderr
    reader = threading.Thread(target=lambda: lines.extend(stderr), daemon=True)
    reader.start()
    try:
        until(lambda: any("ready: tiny" in line for line in lines) or process.poll() is not None)
        address = re.search(r"listening on (http://\S+),", "".join(lines))
        assert address is not None, lines
        yield process, address[1], lines
    finally:
        process.kill()
        process.wait()
        reader.join(SECONDS)
        process.stderr.close()


def test_the_command_serves_reads_again_and_ends_with_its_workers(started: Started, tmp_path: Path) -> None:
    process, address, lines = started
    workers = children(process.pid)
    assert len(workers) == 2

    def asked(policy: str) -> Any:
        body = json.dumps({"text": "a", "policy": policy}).encode()
        request = urllib.request.Request(f"{address}/v1/score", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)

    assert asked("all")["flagged"] is True
    (tmp_path / "policies.toml").write_text("[policy.none]\nthresholds = { default = 1.0 }\n")
    process.send_signal(signal.SIGHUP)
    until(lambda: any("read again: 1 policies" in line for line in lines))
    assert asked("none")["flagged"] is False and asked("all")["error"]["code"] == "policy_not_found"
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    until(lambda: all(map(gone, workers)))
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert [line["status"] for line in logged] == [200, 200, 404]


def test_the_curl_that_the_help_ends_with_runs(started: Started, run: Callable[..., Any]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    process, address, _ = started
    line = run("serve", "--help").stdout.strip().splitlines()[-1].strip()
    assert line.startswith("curl http://127.0.0.1:8080/v1/moderations ")
    command = line.replace("http://127.0.0.1:8080", address)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=SECONDS, check=True)
    assert "category_scores" in json.loads(done.stdout)["results"][0]
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130


def test_misuse_of_the_command_is_said_in_a_line(
    run: Callable[..., Any], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    for options, code, says in (
        (("--host", "0.0.0.0"), 1, "with --api-key-file"),
        (("--max-inputs", 10, "--queue", 5), 2, "a queue must hold one"),
        (("-m", "a=x.gguf", "-m", "a=y.gguf"), 2, "two models are called a"),
        (("--port", 70000), 2, "70000"),
    ):
        result = run("serve", *options)
        assert result.exit_code == code and says in result.stderr


def test_the_listener_is_said_to_be_tcp_so_that_small_answers_are_sent_at_once() -> None:
    with _listening("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY
