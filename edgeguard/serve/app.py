"""The routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgeguard.guard import Score
from edgeguard.rows.record import Failure
from edgeguard.rows.schema import to_json_line
from edgeguard.serve import asking, replies
from edgeguard.serve.gate import TRAIL, Gate, Receive, Scope, Send
from edgeguard.serve.page_files import page_files
from edgeguard.serve.policies import DecisionRule, Policy, names_of
from edgeguard.serve.refusal import Refusal, refused, status_of
from edgeguard.serve.served import Served, Settled
from edgeguard.serve.state import OPENAIS, State
from edgeguard.serve.trail import Trail
from edgeguard.serve.work import RecordWork

NDJSON = "application/x-ndjson"
# What the page may do: its own files, its own server, nothing else.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(state: State) -> Starlette:
    """The ASGI application of a server. It answers 503 until the state is ready."""
    routes = _Routes(state)

    async def page(request: Request) -> Response:
        data, kind = page_files()[request.url.path]
        return Response(data, headers={"content-security-policy": PAGE_POLICY}, media_type=kind)

    middleware = [Middleware(Gate, state=state)]
    if state.options.origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(state.options.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-edgeguard-policy", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
        middleware.insert(0, cors)
    return Starlette(
        routes=[
            Route("/v1/moderations", routes.moderations, methods=["POST"]),
            Route("/v1/chat/moderations", routes.chat_moderations, methods=["POST"]),
            Route("/v1/score", routes.score, methods=["POST"]),
            Route("/beta/litellm_basic_guardrail_api", routes.guardrail, methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/health", routes.health),
            Route("/ready", routes.ready),
            Route("/metrics", routes.metrics),
            *(Route(path, page) for path in page_files()),
        ],
        middleware=middleware,
        exception_handlers={HTTPException: _no_route},
    )


async def _no_route(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        raise Refusal(405, "method_not_allowed", f"{request.method} is not for this path, expected {allowed}")
    raise Refusal(
        404,
        "not_found",
        "there is nothing at this path; expected POST /v1/moderations, /v1/chat/moderations, /v1/score or "
        "/beta/litellm_basic_guardrail_api, or GET /v1/models, /health, /ready, /metrics or /",
    )


class _Routes:
    """The routes of one server, as methods."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def moderations(self, request: Request) -> Response:
        """OpenAI's."""
        return await self._moderated(request, asking.moderations(asking.read_json(await request.body())))

    async def chat_moderations(self, request: Request) -> Response:
        """Mistral's: a chat, or several."""
        return await self._moderated(request, asking.chat_moderations(asking.read_json(await request.body())))

    async def _moderated(self, request: Request, asked: asking.AskedRecords) -> Response:
        served, policy, decision = self._chosen(request, asked)
        several = len(asked.records) > 1
        with self._place(request, asked, served):
            scores: list[Score] = []
            async for scored in self._scored(request, asked, served, policy, decision):
                if isinstance(scored.result, Failure):
                    raise refused(scored.result, f"input[{len(scores)}]" if several else "input")
                scores.append(scored.result)
        return JSONResponse(replies.moderations(scores, _called(served, policy), policy, served.names))

    async def score(self, request: Request) -> Response:
        """edgeguard's own: a row for a record, in a list or line by line."""
        asked = asking.scores(asking.read_json(await request.body()))
        served, policy, decision = self._chosen(request, asked)
        if NDJSON in request.headers.get("accept", ""):
            return _Lines(self._rows(request, asked, served, policy, decision))
        rows = [row async for row in self._rows(request, asked, served, policy, decision)]
        if asked.shape == "results":
            return JSONResponse({"model": _called(served, policy), "results": rows})
        if asked.shape == "list":
            return JSONResponse(rows)
        status = status_of(rows[0]["error"]["type"]) if "error" in rows[0] else 200
        if status != 200:
            _trail(request).code = rows[0]["error"]["type"]
        return JSONResponse(rows[0], status)

    async def _rows(
        self,
        request: Request,
        asked: asking.AskedRecords,
        served: Served,
        policy: Policy | None,
        decision: DecisionRule | None,
    ) -> AsyncIterator[dict[str, Any]]:
        with self._place(request, asked, served):
            async for scored in self._scored(request, asked, served, policy, decision):
                yield replies.row(scored, policy)

    async def guardrail(self, request: Request) -> Response:
        """LiteLLM's."""
        checked = asking.guardrail(asking.read_json(await request.body()))
        asked = checked.asked
        served, policy, decision = self._chosen(request, asked)
        found: list[Score] = []
        with self._place(request, asked, served):
            async for scored in self._scored(request, asked, served, policy, decision):
                if isinstance(scored.result, Failure):
                    raise refused(scored.result, "texts")
                found.append(scored.result)
        rest = iter(found)
        scores = [next(rest) if text.strip() else None for text in checked.texts]
        names = {category.code: category.name for category in served.workers.profile.categories}
        said = replies.guardrail([*scores, *rest], checked.texts, replace=checked.replace, names=names)
        return JSONResponse(said)

    async def models(self, request: Request) -> Response:
        """What is served, as OpenAI and llama-server list it; `meta` says what edgeguard knows."""
        data = []
        for served in self._state.served.values():
            policies = names_of(self._state.policies, served.name)
            for policy in (None, *(self._state.policies[name] for name in policies)):
                entry = {"id": _called(served, policy), "object": "model", "created": served.created}
                data.append({**entry, "owned_by": "edgeguard", "meta": self._meta(served, policy)})
        return JSONResponse({"object": "list", "data": data, "aliases": list(OPENAIS)})

    def _meta(self, served: Served, policy: Policy | None) -> dict[str, Any]:
        workers = served.workers
        profile, labels = workers.profile, ("unsafe", *workers.codes)
        decision = DecisionRule(workers.calibration, workers.thresholds)
        bands: dict[str, float | None] = {}
        if policy is not None:
            decision = self._state.decisions[policy.name, served.name]
            bands = {label: policy.band_of(label) for label in labels}
        return {
            "guard": workers.name,
            "profile": profile.name,
            "taxonomy": profile.taxonomy,
            "model_sha256": workers.model_sha256,
            "estimator": workers.estimator,
            "calibrated": decision.calibration is not None,
            "categories": [{"code": c.code, "name": c.name, "description": c.description} for c in profile.asked],
            "thresholds": {label: decision.thresholds.of(label) for label in labels},
            "review": {label: low for label, low in bands.items() if low is not None},
            "names": None if served.names is None else served.names.row(),
            "workers": workers.workers,
            "self_test": served.self_test,
        }

    async def health(self, request: Request) -> Response:
        """Whether the process is there, and its models are loaded; as llama-server answers it."""
        if self._state.phase == "loading":
            raise Refusal(503, "loading_model", "Loading model", retry_after=2)
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether it takes requests: its models have passed their self-tests, and it is not ending."""
        if self._state.phase == "draining":
            raise Refusal(503, "shutting_down", "this server is ending", retry_after=5)
        return await self.health(request)

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self._state.metrics.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    # What the routes share

    def _chosen(
        self, request: Request, asked: asking.AskedRecords
    ) -> tuple[Served, Policy | None, DecisionRule | None]:
        header = request.headers.get("x-edgeguard-policy")
        if header is not None and asked.policy not in (None, header):
            raise Refusal(
                400, "two_policies", f"the header names policy {header!r}, and the request {asked.policy!r}; name one"
            )
        model = asked.model or request.query_params.get("model")
        served, policy, decision = self._state.chosen(model, asked.policy or header)
        trail = _trail(request)
        trail.model, trail.policy = served.name, None if policy is None else policy.name
        return served, policy, decision

    def _place(self, request: Request, asked: asking.AskedRecords, served: Served) -> Any:
        most = self._state.options.limits.inputs
        if len(asked.records) > most:
            raise Refusal(
                400,
                "too_many_inputs",
                f"the request has {len(asked.records)} records, this server takes {most} at once; split it",
                param="input",
            )
        return self._state.queue.place(len(asked.records), served)

    async def _scored(
        self,
        request: Request,
        asked: asking.AskedRecords,
        served: Served,
        policy: Policy | None,
        decision: DecisionRule | None,
    ) -> AsyncIterator[Settled]:
        trail = _trail(request)
        work = RecordWork(self._state.options.limits.tokens, decision, asked.explain, asked.session is not None)
        found = served.score(asked.records, work, asked.session)
        async with aclosing(found):  # type: ignore[type-var]
            number = 0
            async for scored in found:
                trail.add(asked.records[number], scored)
                review = policy is not None and isinstance(scored.result, Score) and policy.in_review(scored.result)
                self._state.metrics.record(served.name, scored, review)
                number += 1
                yield scored


class _Lines(Response):
    """Rows as they come, one JSON object a line."""

    def __init__(self, rows: AsyncIterator[dict[str, Any]]) -> None:
        self._rows = rows
        super().__init__(None, media_type=NDJSON)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them. Nothing is sent before the first row, so that what is refused is an error of its own."""
        began = False
        async with aclosing(self._rows) as rows:  # type: ignore[type-var]
            async for row in rows:
                if not began:
                    headers = [(b"content-type", NDJSON.encode())]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    began = True
                line = to_json_line(row).encode() + b"\n"
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _called(served: Served, policy: Policy | None) -> str:
    """What answers, as a client may name it again."""
    return served.name if policy is None else f"{served.name}@{policy.name}"


def _trail(request: Request) -> Trail:
    trail = request.scope[TRAIL]
    assert isinstance(trail, Trail)
    return trail
