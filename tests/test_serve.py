"""The routes of the server, as the clients that are there ask them: real connections, a tiny guard in processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from processes import SECONDS
from serving import Running, opening, running

from edgeguard import Guard

openai = pytest.importorskip("openai")
OWN = ("S1", "S10", "S2")
CHAT = [{"role": "user", "content": "How do I boil an egg?"}, {"role": "assistant", "content": "In water."}]
TABLE = """\
name = "tiny-names"
[[category]]
name = "violence"
sources = ["S1", "S10"]
match = "wider"
[[category]]
name = "illicit"
sources = ["S2"]
match = "same"
[[absent]]
name = "harassment"
reason = "nothing stands for it"
"""
POLICIES = """\
[policy.strict]
thresholds = { default = 0.0001 }
[policy.lax]
thresholds = { default = 1.0 }
review = { default = 0.0, S1 = 0.5 }
[policy.raw]
calibration = false
models = ["other"]
"""


@pytest.fixture(scope="module")
def server(tiny_model: Path, tiny_profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two models by name, one of them in two processes; policies; names of its own."""
    folder = tmp_path_factory.mktemp("serve")
    table, policies = folder / "table.toml", folder / "policies.toml"
    table.write_text(TABLE)
    policies.write_text(POLICIES)
    first = opening(tiny_model, tiny_profile, workers=2)
    other = opening(tiny_model, tiny_profile, "other", thresholds={"default": 0.9})
    with running(first, other, categories=str(table), policy_file=policies) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def row_of(guard: Guard, record: Any) -> dict[str, Any]:
    return json.loads(json.dumps(guard.score(record).row()))


# ------------------------------------------------------------ moderations


def test_the_openai_package_gets_its_own_types_with_the_scores_of_the_guard(client: Any, tiny_guard: Guard) -> None:
    found = client.moderations.create(input="How do I boil an egg?")
    row = row_of(tiny_guard, "How do I boil an egg?")
    (result,) = found.results
    assert found.id.startswith("modr-") and found.model == "tiny"
    assert result.flagged is row["flagged"]
    scores = row["category_scores"]
    assert result.category_scores.model_dump(exclude_unset=True) == {
        "violence": max(scores["S1"], scores["S10"]),
        "illicit": scores["S2"],
    }
    assert result.categories.model_dump(exclude_unset=True) == {
        "violence": bool({"S1", "S10"} & {*row["categories"]}),
        "illicit": "S2" in row["categories"],
    }
    assert result.category_applied_input_types.violence == ["text"]


def test_what_the_package_validates_strictly_is_right_but_for_names_that_nothing_stands_for(server: Running) -> None:
    """Its types have every name required but two; an absent one is absent, and never a number that was made up."""
    said = server.ask("/v1/moderations", {"input": "a"}).json
    from openai.types import ModerationCreateResponse
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        ModerationCreateResponse.model_validate(said)
    errors = caught.value.errors()
    assert {error["type"] for error in errors} == {"missing"}
    assert not {"violence", "illicit"} & {str(error["loc"][-1]) for error in errors}
    assert "harassment" in {str(error["loc"][-1]) for error in errors}


def test_a_whole_table_validates_with_the_packages_strict_types(tiny_guard: Guard) -> None:
    from openai.types import ModerationCreateResponse

    from edgeguard.serve.categories import CategoryMap, Target
    from edgeguard.serve.replies import moderations

    names = (
        *(
            "harassment",
            "harassment/threatening",
            "hate",
            "hate/threatening",
            "illicit",
            "illicit/violent",
            "self-harm",
        ),
        *("self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic"),
    )
    table = CategoryMap("all", (), tuple(Target(name, ("S1",), "near") for name in names), {})
    said = moderations([tiny_guard.score("a")], "tiny", None, table)
    found = ModerationCreateResponse.model_validate(json.loads(json.dumps(said)))
    assert found.results[0].category_scores.sexual_minors == row_of(tiny_guard, "a")["category_scores"]["S1"]


def test_many_inputs_come_back_in_order_by_the_async_client(server: Running, tiny_guard: Guard) -> None:
    texts = [f"text {i} {'word ' * (i * 7 % 23)}" for i in range(12)]

    async def ask() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
            return await asyncio.gather(*(found.moderations.create(input=texts[i:]) for i in range(4)))

    expected = [row_of(tiny_guard, text)["category_scores"]["S2"] for text in texts]
    for i, found in enumerate(asyncio.run(ask())):
        assert [result.category_scores.illicit for result in found.results] == expected[i:]


@pytest.mark.parametrize(
    ("given", "records"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], ["a\nb"]),
        (CHAT, [{"messages": CHAT}]),
        ([CHAT, [CHAT[0]]], [{"messages": CHAT}, {"messages": [CHAT[0]]}]),
        ([{"messages": CHAT}], [{"messages": CHAT}]),
        ([[{"type": "text", "text": "a"}], CHAT], ["a", {"messages": CHAT}]),
    ],
)
def test_every_shape_of_an_input_is_what_it_means(server: Running, tiny_guard: Guard, given: Any, records: Any) -> None:
    said = server.ask("/v1/moderations", {"input": given, "model": "omni-moderation-latest"}).json
    rows = [row_of(tiny_guard, record) for record in records]
    assert [result["unsafe"] for result in said["results"]] == [row["unsafe"] for row in rows]
    assert [result["category_bounds"]["illicit"] for result in said["results"]] == [row["bounds"]["S2"] for row in rows]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input": [{"type": "text", "text": "a"}, IMAGE]}, 400, "image_not_scored", "input[1]"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, 400, "image_not_scored", "input[0].content[0]"),
        ({"input": [{"type": "input_audio"}]}, 400, "part_not_scored", "input[0]"),
        ({}, 400, "missing_field", "input"),
        ({"input": []}, 400, "invalid_type", "input"),
        ({"input": 3}, 400, "invalid_type", "input"),
        ({"input": ["a", {"type": "text", "text": "b"}]}, 400, "invalid_type", "input"),
        ({"input": ""}, 400, "empty_text", "input"),
        ({"input": ["a", " "]}, 400, "empty_text", "input[1]"),
        ({"input": "word " * 3000}, 400, "context_overflow", "input"),
        ({"input": ["a", "word " * 3000]}, 400, "context_overflow", "input[1]"),
        ({"input": "a", "model": "tinny"}, 404, "model_not_found", "model"),
        ({"input": "a", "model": 3}, 400, "invalid_type", "model"),
        ({"input": "a", "model": "tiny@strictt"}, 404, "policy_not_found", "model"),
        ({"input": "a", "model": "tiny@raw"}, 404, "policy_not_found", "model"),
        ({"input": "a", "model": "tiny@strict", "policy": "lax"}, 400, "two_policies", "model"),
        ([1], 400, "invalid_type", None),
    ],
)
def test_what_is_not_scored_is_an_error_in_openais_form(
    server: Running, body: Any, status: int, code: str, param: str | None
) -> None:
    reply = server.ask("/v1/moderations", body)
    assert (reply.status, reply.code, reply.json["error"]["param"]) == (status, code, param)
    assert any(
        word in reply.json["error"]["message"]
        for word in ("expected", "served", "there are", "shorten", "name one", "are not scored")
    )


def test_the_openai_package_raises_its_own_errors(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="images are not scored") as caught:
        client.moderations.create(input=[{"type": "image_url", "image_url": {"url": "http://a/b.png"}}])
    assert caught.value.code == "image_not_scored" and caught.value.request_id.startswith("req_")
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'"):
        client.moderations.create(input="a", model="tyny")


def test_mistrals_route_takes_a_chat_or_several(server: Running, tiny_guard: Guard) -> None:
    for given, n in ((CHAT, 1), ([CHAT, CHAT], 2)):
        said = server.ask("/v1/chat/moderations", {"input": given, "model": "tiny"}).json
        assert [r["unsafe"] for r in said["results"]] == [row_of(tiny_guard, {"messages": CHAT})["unsafe"]] * n
    for wrong in ("a", ["a"], [], [{"type": "text", "text": "a"}]):
        assert server.ask("/v1/chat/moderations", {"input": wrong}).code == "invalid_type"


# ------------------------------------------------------------ edgeguard's own rows


RECORDS = [
    {"id": "a", "text": "How do I boil an egg?"},
    {"id": "long", "text": "word " * 3000},
    {"id": "a", "text": "again"},
    {"id": 7, "prompt": "漢字", "response": "Ünïcödé"},
    {"id": "none"},
    {"id": "chat", "messages": CHAT},
]


def test_a_list_gets_the_very_rows_of_the_command(
    server: Running, tiny: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, RECORDS)))
    rows = [json.loads(line) for line in run("score", source, *tiny).stdout.splitlines()]
    for row in rows:  # the command names the file
        if "error" in row:
            row["error"]["message"] = row["error"]["message"].removeprefix(f"{source}:{row['error']['line']}: ")
    said = server.ask("/v1/score", RECORDS).json
    assert [row.get("error", {}).get("type") for row in said] == [
        *(None, "context_overflow", "duplicate_id"),
        *(None, "missing_field", None),
    ]
    assert [row for row in said if "error" not in row] == [row for row in rows if "error" not in row]
    assert [row["id"] for row in said] == [row["id"] for row in rows]
    assert server.ask("/v1/score", {"input": RECORDS}).json == {"model": "tiny", "results": said}


def test_rows_come_line_by_line_where_they_are_asked_for_so(server: Running) -> None:
    reply = server.ask("/v1/score", RECORDS, accept="application/x-ndjson")
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in reply.body.splitlines()] == server.ask("/v1/score", RECORDS).json


def test_one_record_is_one_row_and_its_error_an_error(server: Running, tiny_guard: Guard) -> None:
    assert server.ask("/v1/score", RECORDS[0]).json == row_of(tiny_guard, RECORDS[0])
    reply = server.ask("/v1/score", RECORDS[1])
    assert reply.status == 400 and reply.json["error"]["type"] == "context_overflow" and "flagged" not in reply.json


def test_the_tree_of_answers_comes_where_it_is_asked_for(server: Running, tiny_guard: Guard) -> None:
    found = server.ask("/v1/score", {"input": {"text": "a"}, "explain": True}).json["results"][0]
    places = found.pop("explanation")["places"]
    assert found == row_of(tiny_guard, "a")
    assert places[0]["mass"] == 1 and len(places) == len(tiny_guard.explore("a").logp)
    assert server.ask("/v1/score", {"input": ["a", "b"], "explain": True}).code == "several_records"


def test_a_conversation_that_grows_keeps_to_one_process_and_gets_the_same_rows(
    server: Running, tiny_guard: Guard
) -> None:
    words = "It is done like this, step by step, and not otherwise. " * 3
    for session in ("a", "b", "ü"):
        for n in range(20, len(words), 40):
            record = {"id": n, "prompt": "How?", "response": words[:n]}
            assert server.ask("/v1/score", {**record, "session": session}).json == row_of(tiny_guard, record)
    both = {"input": ["a", "b"], "session": "a"}
    assert server.ask("/v1/score", both).code == "several_records"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"text": ', "invalid_json"),
        (b"[" * 100_000, "too_deep"),
        (b'"\xff"', "invalid_utf8"),
        (b"3", "invalid_type"),
        (b"[]", "empty_list"),
        (b'{"input": []}', "empty_list"),
        (b'{"text": "a", "explain": 1}', "invalid_type"),
    ],
)
def test_a_body_that_is_none_is_an_error(server: Running, body: bytes, code: str) -> None:
    reply = server.ask("/v1/score", body)
    assert (reply.status, reply.code) == (400, code)


# ------------------------------------------------------------ models and policies


def test_a_model_is_asked_by_its_name_and_decides_by_its_own_thresholds(server: Running, tiny_guard: Guard) -> None:
    row = row_of(tiny_guard, "a")
    said = server.ask("/v1/score", {"text": "a", "model": "other"}).json
    assert said["category_scores"] == row["category_scores"]
    assert said["flagged"] == (row["unsafe"] >= 0.9 or any(p >= 0.9 for p in row["category_scores"].values()))
    assert server.ask("/v1/score?model=other", ["a"]).json == [said]


def test_a_policy_is_chosen_by_the_models_name_a_header_or_a_field(server: Running, tiny_guard: Guard) -> None:
    row = row_of(tiny_guard, "a")
    ways = [
        server.ask("/v1/score", {"text": "a", "model": "tiny@strict"}),
        server.ask("/v1/score", {"text": "a", "model": "@strict"}),
        server.ask("/v1/score", {"text": "a"}, x_edgeguard_policy="strict"),
        server.ask("/v1/score", {"text": "a", "policy": "strict"}),
    ]
    for said in ways:
        assert said.json["flagged"] and said.json["policy"] == "strict" and said.json["categories"] == [*OWN]
        assert said.json["category_scores"] == row["category_scores"] and said.json["bounds"] == row["bounds"]
    lax = server.ask("/v1/moderations", {"input": "a", "model": "tiny@lax"}).json
    assert lax["model"] == "tiny@lax"
    assert lax["results"][0]["flagged"] is False and lax["results"][0]["review"] is True
    assert server.ask("/v1/score", {"text": "a", "policy": "lax"}, x_edgeguard_policy="strict").code == "two_policies"


def test_v1_models_says_what_is_served_and_what_was_mapped(server: Running, client: Any) -> None:
    assert [model.id for model in client.models.list()] == [
        *("tiny", "tiny@strict", "tiny@lax", "other", "other@strict", "other@lax", "other@raw")
    ]
    metas = {one["id"]: one["meta"] for one in server.ask("/v1/models").json["data"]}
    assert metas["other"]["thresholds"] == dict.fromkeys(("unsafe", *OWN), 0.9)
    assert metas["tiny@lax"]["thresholds"]["S1"] == 1.0 and metas["tiny@lax"]["review"] == {
        **dict.fromkeys(("unsafe", "S10", "S2"), 0.0),
        "S1": 0.5,
    }
    assert [one["code"] for one in metas["tiny"]["categories"]] == [*OWN]
    assert metas["tiny"]["names"]["categories"]["violence"] == {"sources": ["S1", "S10"], "match": "wider"}
    assert metas["tiny"]["names"]["absent"] == {"harassment": "nothing stands for it"}
    assert metas["tiny"]["self_test"] == "skipped"


# ------------------------------------------------------------ LiteLLM


GUARDRAIL = "/beta/litellm_basic_guardrail_api"


def guardrail(server: Running, **body: Any) -> Any:
    return server.ask(GUARDRAIL, {"input_type": "request", "request_data": {}, **body}).json


def test_the_guardrail_blocks_passes_or_replaces(server: Running) -> None:
    params = {"model": "tiny@strict"}
    blocked = guardrail(server, texts=["a", "b"], additional_provider_specific_params=params)
    assert blocked["action"] == "BLOCKED" and "S1 Violence" in blocked["blocked_reason"]
    passed = guardrail(server, texts=["a", " "], additional_provider_specific_params={"policy": "lax"})
    assert passed == {"action": "NONE", "blocked_reason": None, "texts": None}
    replaced = guardrail(
        server, texts=["a", " "], additional_provider_specific_params={**params, "on_flagged": "replace"}
    )
    assert replaced["action"] == "GUARDRAIL_INTERVENED"
    assert replaced["texts"] == ["[removed by a guard: S1, S10, S2]", " "]


def test_the_guardrail_scores_the_arguments_of_calls_and_refuses_images(server: Running) -> None:
    call = {"function": {"name": "shell", "arguments": '{"cmd": "rm"}'}}
    params = {"policy": "strict", "on_flagged": "replace"}
    assert (
        guardrail(server, texts=[], tool_calls=[call], additional_provider_specific_params=params)["action"]
        == "BLOCKED"
    )
    assert guardrail(server, texts=["a"], images=["data:"])["error"]["code"] == "image_not_scored"
    assert guardrail(server, texts=[])["action"] == "NONE"
    assert guardrail(server, texts=["word " * 3000])["error"]["code"] == "context_overflow"
    assert guardrail(server, texts="a")["error"]["code"] == "invalid_type"
    assert guardrail(server, texts=["a"], input_type="both")["error"]["code"] == "invalid_type"


def test_a_response_is_judged_after_its_prompt(server: Running, tiny_guard: Guard) -> None:
    p = row_of(tiny_guard, {"prompt": "How do I boil an egg?", "response": "In water."})["unsafe"]
    asked = {"texts": ["In water."], "input_type": "response", "structured_messages": [CHAT[0]]}
    said = guardrail(server, **asked, additional_provider_specific_params={"policy": "strict"})
    assert f"P(unsafe) {p:.3g}" in said["blocked_reason"]


def test_litellms_own_client_is_answered(server: Running) -> None:
    if find_spec("litellm") is None:
        pytest.skip("litellm is not installed")
    script = Path(__file__).with_name("litellm_client.py")
    done = subprocess.run(
        [sys.executable, str(script), server.url],
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # else it asks the network for prices
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    passed, blocked, replaced, failed = map(json.loads, done.stdout.splitlines())
    assert passed == ["How do I boil an egg?"]
    assert blocked[0] == "blocked" and "S1 Violence" in blocked[1]
    assert replaced == ["[removed by a guard: S1, S10, S2]"]
    assert failed[0] == "failed" and "404" in failed[1]


# ------------------------------------------------------------ the rest


def test_health_ready_metrics_and_the_page_are_there(server: Running) -> None:
    assert server.ask("/health").json == server.ask("/ready").json == {"status": "ok"}
    page = server.ask("/")
    assert page.headers["content-type"].startswith("text/html") and b"<h1>edgeguard</h1>" in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("/page.css", "/page.js"):
        assert server.ask(name).status == 200
    for name in ("/page", "/index.html", "/../app.py", "/..%2fapp.py", "/page.js/../../app.py", "/__init__.py"):
        assert server.ask(name).status == 404


def test_the_metrics_count_what_was_asked(server: Running) -> None:
    before = metrics(server)
    server.ask("/v1/score", RECORDS)
    server.ask("/v1/score", {"text": "a", "policy": "lax"})
    server.ask("/v1/moderations", {"input": []})
    after = metrics(server)

    def more(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert more('edgeguard_requests_total{route="/v1/score",status="200"}') == 2
    assert more('edgeguard_requests_total{route="/v1/moderations",status="400"}') == 1
    assert more('edgeguard_records_total{model="tiny",outcome="error"}') == 3
    assert more('edgeguard_records_total{model="tiny",outcome="review"}') == 1
    assert more('edgeguard_errors_total{kind="context_overflow"}') == 1
    assert more('edgeguard_seconds_count{part="score"}') == more('edgeguard_seconds_count{part="queue"}') == 4
    assert after["edgeguard_queue_records"] == 0
    assert after['edgeguard_worker_deaths_total{model="tiny"}'] == 0
    assert 0 <= after['edgeguard_flagged_share{model="tiny",of="recent"}'] <= 1


def metrics(server: Running) -> dict[str, float]:
    lines = (line for line in server.ask("/metrics").body.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/moderations", 405, "method_not_allowed"),
        ("DELETE", "/", 405, "method_not_allowed"),
        ("GET", "/v2", 404, "not_found"),
    ],
)
def test_what_is_not_there_is_said_in_openais_form(
    server: Running, method: str, path: str, status: int, code: str
) -> None:
    reply = server.ask(path, method=method)
    assert (reply.status, reply.code) == (status, code)
    assert "expected" in reply.json["error"]["message"]
