"""Who may ask the server, how much, and what is kept of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import until
from serving import Running, opening, running

pytest.importorskip("starlette")

from edgeguard import Calibration, CalibrationError, Guard, ProfileError
from edgeguard.calibration.files import write_calibration
from edgeguard.calibration.maps import Map
from edgeguard.serve.gate import SCORING
from edgeguard.serve.keys import SHORTEST, Keys, read_keys
from edgeguard.serve.limits import ServeLimits
from edgeguard.serve.metrics import FlaggedShare
from edgeguard.serve.policies import read_policies
from edgeguard.serve.server import check_exposure
from edgeguard.serve.state import ServeOptions, is_loopback
from edgeguard.serve.trail import request_id

KEY, OTHER = "k" * 20, "o" * 20
ONE = {"text": "How do I boil an egg?"}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tiny_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Small limits, a key, policies."""
    folder = tmp_path_factory.mktemp("limits")
    (folder / "keys").write_text(f"# ours\nours {KEY}\n\n{OTHER}\n")
    (folder / "policies.toml").write_text("[policy.one]\nthresholds = { default = 0.5 }\n")
    limits = {"body_bytes": 4000, "inputs": 3, "tokens": 700, "queue": 4, "body_seconds": 0.5, "connections": 20}
    with running(
        opening(tiny_model, tiny_profile),
        limits=limits,
        api_key_file=folder / "keys",
        policy_file=folder / "policies.toml",
        allow_hosts=("guard.example",),
        origins=("https://app.example",),
    ) as found:
        yield found


def ask(server: Running, path: str = "/v1/score", body: Any = ONE, **headers: str) -> Any:
    return server.ask(path, body, **{"authorization": f"Bearer {KEY}", **headers})


# ------------------------------------------------------------ keys


def test_a_key_is_needed_but_for_health_and_the_page(server: Running) -> None:
    for path in ("/", "/page.js", "/health", "/ready"):
        assert server.ask(path).status == 200
    for path in ("/v1/models", "/metrics", "/nothing"):
        assert (server.ask(path).status, server.ask(path).code) == (401, "invalid_api_key")
    for path in SCORING:
        reply = server.ask(path, ONE)
        assert (reply.status, reply.code) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer" and "expected" in reply.json["error"]["message"]


def test_either_header_brings_it_and_no_other_key_does(server: Running) -> None:
    assert ask(server).status == 200
    assert server.ask("/v1/score", ONE, authorization=f"bearer {OTHER}").status == 200
    assert server.ask("/v1/score", ONE, x_api_key=OTHER).status == 200
    for wrong in (KEY[:-1], KEY + "k", KEY.upper(), "", "ours", f"ours {KEY}"):
        assert server.ask("/v1/score", ONE, x_api_key=wrong).status == 401
        assert server.ask("/v1/score", ONE, authorization=f"Bearer {wrong}").status == 401
    assert server.ask("/v1/score", ONE, authorization=f"Basic {KEY}").status == 401


@given(st.text(), st.text())
def test_keys_are_told_apart_whatever_they_hold(a: str, b: str) -> None:
    import hashlib

    keys = Keys({"a": hashlib.sha256(a.encode("utf-8", "replace")).digest()})
    assert keys.name_of(a) == "a"
    same = a.encode("utf-8", "replace") == b.encode("utf-8", "replace")
    assert (keys.name_of(b) == "a") is same


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no key"),
        ("# nothing", "has no key"),
        ("short", rf":1: the key has 5 characters; expected at least {SHORTEST}"),
        (f"a {KEY}\na {OTHER}", ":2: the name a stands above"),
        (f"a {KEY} b", ":1: 3 words; expected KEY, or NAME KEY"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_a_mistake_in_the_keys_is_told_without_a_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ProfileError, match=says) as caught:
        read_keys(path)
    assert KEY not in str(caught.value) and OTHER not in str(caught.value)


def test_without_keys_no_other_machine_can_reach_it(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", "127.evil.example"):
        with pytest.raises(ProfileError, match="has no keys"):
            check_exposure(ServeOptions((), host=host))
        check_exposure(ServeOptions((), host=host, api_key_file=tmp_path / "keys"))
    for host in ("127.0.0.1", "127.0.0.53", "::1", "localhost"):
        check_exposure(ServeOptions((), host=host))
        assert is_loopback(host)


# ------------------------------------------------------------ pages of other sites


def test_a_name_that_is_not_this_machines_is_refused(server: Running) -> None:
    """DNS rebinding: a page of evil.example whose name comes to mean 127.0.0.1."""
    near = ("127.0.0.1.evil.example", "[::1", "", "@127.0.0.1", "localhost.evil", "127.0.0.1/", "localhost:80:80")
    for host in ("evil.example", "evil.example:8080", *near):
        reply = ask(server, host=host)
        assert (reply.status, reply.code) == (403, "host_not_allowed"), host
        assert server.ask("/", host=host).status == 403
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8080", "guard.example", "guard.example:443"):
        assert ask(server, host=host).status == 200, host


def test_a_page_of_another_site_is_refused_and_ours_is_not(server: Running) -> None:
    for origin in ("https://evil.example", "null", "http://localhost", "https://app.example.evil"):
        reply = ask(server, origin=origin)
        assert (reply.status, reply.code) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in reply.headers
    assert ask(server, origin=server.url).status == 200
    allowed = ask(server, origin="https://app.example")
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "content-type"}
    assert server.ask("/v1/score", method="OPTIONS", origin="https://app.example", **asked).status == 200
    assert server.ask("/v1/score", method="OPTIONS", origin="https://evil.example", **asked).status == 400


def test_only_json_is_taken_which_a_page_cannot_send_unasked(server: Running) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        reply = ask(server, content_type=kind)
        assert (reply.status, reply.code) == (415, "not_json")
    assert ask(server, content_type="Application/JSON; charset=utf-8").status == 200


# ------------------------------------------------------------ how much


def test_a_long_body_is_refused_and_its_sender_hears_why(server: Running) -> None:
    for n in (4001, 10 << 20):
        reply = ask(server, body=b"x" * n)
        assert (reply.status, reply.code, reply.headers["connection"]) == (413, "body_too_large", "close")
    connection = server.connection()
    pieces = iter([b"x" * 3000, b"x" * 3000])
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/score", pieces, headers)  # in chunks, its length not said
    assert connection.getresponse().status == 413
    connection.close()


def test_many_inputs_many_tokens_and_a_full_queue_are_refused(server: Running) -> None:
    assert ask(server, body=["a", "b", "c"]).status == 200
    for path, body in (("/v1/score", ["a"] * 4), ("/v1/moderations", {"input": ["a"] * 4})):
        reply = ask(server, path, body)
        assert (reply.status, reply.code) == (400, "too_many_inputs")
        assert "takes 3 at once" in reply.json["error"]["message"]
    reply = ask(server, body={"text": "a" * 699 + "é"})
    assert (reply.status, reply.json["error"]["type"]) == (400, "too_many_tokens")
    assert "701 tokens" in reply.json["error"]["message"]
    assert ask(server, body={"text": "safe" * 200}).status == 200  # bytes are not tokens
    with server.server.state.queue.place(2, next(iter(server.server.state.served.values()))):
        reply = ask(server, body=["a", "b", "c"])
        assert (reply.status, reply.code) == (429, "queue_full")
        assert int(reply.headers["retry-after"]) >= 1
        assert ask(server, body=["a", "b"]).status == 200
    assert server.server.state.queue.records == 0


def test_a_queue_holds_at_least_one_request() -> None:
    with pytest.raises(ValueError, match="a queue must hold one"):
        ServeLimits(inputs=5, queue=4)


def raw(server: Running, *pieces: bytes, pause: float = 0.0) -> bytes:
    """What comes back until the server closes, or two seconds have passed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=2) as sock:
        for piece in pieces:
            sock.sendall(piece)
            time.sleep(pause)
        found = b""
        try:
            while data := sock.recv(65536):
                found += data
        except (TimeoutError, ConnectionResetError):
            pass
        return found


HEAD = (
    b"POST /v1/score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer "
    + KEY.encode()
)


def test_a_slow_client_is_closed(server: Running) -> None:
    began = time.monotonic()
    assert b" 408 " in raw(server, HEAD + b"\r\ncontent-length: 20\r\n\r\n", b'{"te')
    assert raw(server, HEAD[:30]) == b""  # a head that does not end
    assert raw(server) == b""  # or does not begin
    assert time.monotonic() - began < 6


def test_a_connection_is_kept_for_the_next_request(server: Running) -> None:
    connection = server.connection()
    for _ in range(3):
        assert server.on(connection, "/v1/score", ONE, authorization=f"Bearer {KEY}").status == 200
        sock = connection.sock
        time.sleep(0.3)  # in all longer than a head may take
    assert connection.sock is sock
    assert server.on(connection, "/v1/score", b"{", authorization=f"Bearer {KEY}").status == 400
    assert server.on(connection, "/v1/score", ONE, authorization=f"Bearer {KEY}").status == 200
    connection.close()


def test_what_is_no_http_is_refused_and_the_others_go_on(server: Running) -> None:
    for junk in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nhost localhost\r\n\r\n"):
        assert b" 400 " in raw(server, junk) or raw(server, junk) == b""
    assert b" 400 " in raw(server, HEAD + b"\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\nx" + b"\r\n\r\n")
    assert ask(server).status == 200


def test_more_connections_than_it_takes_hear_503(server: Running) -> None:
    open_ = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
    time.sleep(0.1)
    refused = [sock for sock in open_[20:] if b"too_many_connections" in sock.recv(4096)]
    assert len(refused) == 10
    for sock in open_:
        sock.close()
    until(lambda: not server.server.server_state.connections)
    assert ask(server).status == 200


# ------------------------------------------------------------ the log


def test_a_request_is_a_line_that_has_no_text(server: Running) -> None:
    secret = "a secret that nobody may read"
    reply = ask(server, body=[secret, {"id": secret, "text": secret}], x_request_id="mine-1")
    assert reply.headers["x-request-id"] == "mine-1"
    ask(server, "/v1/moderations", {"input": {"text": secret}})
    ask(server, body={"text": "a", "model": secret})
    server.ask("/v1/score", ONE, x_api_key=secret)
    until(lambda: any(line.get("code") == "invalid_api_key" for line in server.log()[-2:]))
    line = next(line for line in server.log() if line["request_id"] == "mine-1")
    assert line["path"] == "/v1/score" and line["status"] == 200 and line["key"] == "ours" and line["model"] == "tiny"
    assert line["records"] == 2 and line["tokens"] > 0 and line["ms"] >= line["score_ms"] - 1
    said = "\n".join([*server.lines, *server.said])
    assert secret not in said and KEY not in said and OTHER not in said


def test_texts_are_in_the_log_where_they_were_asked_for(tiny_model: Path, tiny_profile: Path) -> None:
    with running(opening(tiny_model, tiny_profile), log_text=True) as server:
        server.ask("/v1/score", ["first", {"prompt": "a", "response": "second"}])
        until(lambda: server.lines)
        assert server.log()[-1]["texts"] == ["first", "second"]


@given(st.text())
def test_an_id_of_a_client_is_taken_where_it_is_fit_for_a_log(given: str) -> None:
    found = request_id(given)
    assert found == given or found.startswith("req_")
    assert found.isascii() and found.isprintable() and 0 < len(found) <= 64


# ------------------------------------------------------------ reading again


def test_policies_are_read_again_and_a_mistake_keeps_the_old_ones(server: Running) -> None:
    path = server.server.state.options.policy_file
    assert path is not None

    def reload(text: str) -> str:
        n = len(server.said)
        path.write_text(text)
        server.server.reload()
        until(lambda: len(server.said) > n)
        return server.said[-1]

    assert "1 policies, 2 keys" in reload("[policy.two]\nthresholds = { S1 = 0.0 }\n")
    assert ask(server, body={**ONE, "policy": "two"}).json["categories"][0] == "S1"
    assert ask(server, body={**ONE, "policy": "one"}).status == 404
    for wrong in ("[policy.two", "[policy.three]\nthresholds = { S9 = 0.1 }", "[policy.x]\nthresholds = { S1 = 2 }"):
        assert "the policies and keys before stay" in reload(wrong)
        assert ask(server, body={**ONE, "policy": "two"}).status == 200
    metrics = ask(server, "/metrics", None).body.decode()
    assert 'edgeguard_reloads_total{result="kept_old"} 3.0' in metrics
    reload("[policy.one]\nthresholds = { default = 0.5 }\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no policy"),
        ("[policies.a]", "policies is not a key here.*did you mean 'policy'"),
        ("[policy.a]\nthreshold = 0.5", r":2: \[policy.a\] threshold is not a key here"),
        ("[policy.a]\nthresholds = 0.5", "expected a table"),
        ("[policy.a]\nthresholds = {}", "thresholds is empty"),
        ("[policy.a.thresholds]\nS1 = 1.5", ":2: .*S1 is 1.5; expected a number from 0 to 1"),
        ("[policy.a]\ncalibration = 3", "expected a file's path, or false"),
        ("[policy.a]\ncalibration = true", "expected a file's path, or false"),
        ('[policy."a@b"]\nmodels = []', "no name for a policy"),
    ],
)
def test_a_mistake_in_the_policies_names_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=says):
        read_policies(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("thresholds = { S9 = 0.1 }", "S9, which profile tiny has not"),
        ("review = { S9 = 0.1 }", "S9, which profile tiny has not"),
        ("review = { S1 = 0.6 }", "S1 is for review from 0.6 on, and counts from 0.5 on"),
        ('models = ["tinny"]', "is for model \"tinny\", which is not served .did you mean 'tiny'"),
    ],
)
def test_a_policy_that_does_not_fit_the_guard_is_refused(tmp_path: Path, tiny_guard: Any, text: str, says: str) -> None:
    from edgeguard.serve.policies import check_policies

    path = tmp_path / "p.toml"
    path.write_text(f"[policy.a]\n{text}\n")
    with pytest.raises(ProfileError, match=says):
        check_policies(read_policies(path), {"tiny": tiny_guard})


def test_a_policy_may_have_a_calibration_of_its_own(tmp_path: Path, tiny_guard: Guard) -> None:
    maps = {"unsafe": Map("platt", {"slope": 2.0, "intercept": 1.0}), "S1": Map("temperature", {"temperature": 3.0})}
    bound = Calibration("tiny", tiny_guard.profile.name, "marginal", tiny_guard.model_sha256, maps, {"S1": 0.25})
    write_calibration(bound, tmp_path / "own.json")
    path = tmp_path / "p.toml"
    path.write_text(
        '[policy.own]\ncalibration = "own.json"\nthresholds = { S2 = 0.1 }\n[policy.raw]\ncalibration = false\n'
    )
    own, raw = (policy.decision(tiny_guard) for policy in read_policies(path).values())
    for decision, calibration, thresholds in ((own, bound, {"S2": 0.1}), (raw, None, {})):
        expected = Guard(tiny_guard.backend, tiny_guard.profile, calibration=calibration, thresholds=thresholds)
        deciding = tiny_guard.deciding(decision.calibration, decision.thresholds)
        assert deciding.score("a").row() == {**expected.score("a").row()}
        assert deciding.thresholds == expected.thresholds
    assert tiny_guard.calibration is None  # it is another guard
    write_calibration(replace(bound, model_sha256="0" * 64), tmp_path / "own.json")
    with pytest.raises(CalibrationError, match="was fitted on model"):
        read_policies(path)["own"].decision(tiny_guard)


# ------------------------------------------------------------ drift


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 20))
def test_the_share_flagged_is_that_of_the_last_ones_and_of_those_before(flags: list[bool], size: int) -> None:
    share = FlaggedShare(size)
    for flag in flags:
        share.add(flag)
    recent, before = flags[-size:], flags[: -size or None] if len(flags) > size else []
    assert share.recent == pytest.approx(sum(recent) / max(1, len(recent)))
    assert share.before == pytest.approx(sum(before) / max(1, len(before)))
    assert (share.drift > 0) == (bool(before) and share.recent > share.before)
