"""Bodies of requests as records, for each route. What is not understood is a Refusal that says what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

from edgeguard.errors import RecordError
from edgeguard.rows.ids import without_duplicates
from edgeguard.rows.judging import Input, understood
from edgeguard.rows.record import Failure, Message, Record
from edgeguard.rows.values import parse_json, shown
from edgeguard.serve.refusal import Refusal

Records = tuple[Record | Failure, ...]

_EXPECTED_INPUT = (
    'a string, a list of strings, a list of parts {"type": "text", "text"}, a chat as a list of {"role", "content"}, '
    "or a list of chats"
)
_CHOSEN = ("model", "policy", "session")  # what a request says to the server, beside its records
_BESIDE = (*_CHOSEN, "explain")


@dataclass(frozen=True)
class AskedRecords:
    """A request as it was understood.

    records  in the order of the answer
    shape    of the answer: "row" for one record, "list" for a list of them, "results" for what stood under `input`
    model    as the request names it; None: the default. policy: the same
    session  of a conversation that grows
    explain  the tree of answers is wanted too
    """

    records: Records
    shape: Literal["row", "list", "results"] = "list"
    model: str | None = None
    policy: str | None = None
    session: str | None = None
    explain: bool = False


@dataclass(frozen=True)
class Checked:
    """What a gateway asks: the texts that it may replace, and how.

    texts    how many of the records are its texts, in order; those behind them are the arguments of calls
    replace  flagged texts are replaced, and the request goes on without them; else it is blocked
    """

    asked: AskedRecords
    texts: tuple[str, ...]
    replace: bool


def read_json(body: bytes) -> Any:
    """The JSON value of a body. Raises Refusal."""
    try:
        return parse_json(body.decode(), "the body", "send one JSON object")
    except UnicodeDecodeError as error:
        raise Refusal(400, "invalid_utf8", f"byte {error.start} of the body is not UTF-8; send UTF-8") from None
    except RecordError as error:
        raise Refusal(400, error.kind, str(error)) from None


def _object(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise Refusal(400, "invalid_type", f"the body is {shown(body)}, expected a JSON object")
    return body


def _name(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    if value is not None and (not isinstance(value, str) or not value or len(value) > 256):
        raise Refusal(400, "invalid_type", f"{key} is {shown(value)}, expected a name", param=key)
    return value


def _records(given: Iterable[Input]) -> Records:
    return tuple(understood(one) for one in given)


# OpenAI's and Mistral's moderations


def moderations(body: Any) -> AskedRecords:
    """`input` of POST /v1/moderations. Raises Refusal."""
    body = _object(body)
    if "input" not in body:
        raise Refusal(400, "missing_field", f"input is missing, expected {_EXPECTED_INPUT}", param="input")
    return AskedRecords(_records(_inputs(body["input"])), model=_name(body, "model"), policy=_name(body, "policy"))


def chat_moderations(body: Any) -> AskedRecords:
    """`input` of POST /v1/chat/moderations: a chat, or a list of them. Raises Refusal."""
    body = _object(body)
    value, expected = body.get("input"), 'a chat as a list of {"role", "content"}, or a list of chats'
    if not isinstance(value, list) or not value or not all(isinstance(one, dict | list) for one in value):
        raise Refusal(400, "invalid_type", f"input is {shown(value)}, expected {expected}", param="input")
    if any(isinstance(one, dict) and "role" not in one and "messages" not in one for one in value):
        raise Refusal(400, "invalid_type", f"a message of input has no role, expected {expected}", param="input")
    return AskedRecords(_records(_inputs(value)), model=_name(body, "model"), policy=_name(body, "policy"))


def _inputs(value: Any) -> list[Input]:
    """The records of an `input`: one for a string, a chat, or the parts of a message; else one for each."""
    if isinstance(value, str):
        return [{"text": value}]
    if not isinstance(value, list) or not value:
        raise Refusal(400, "invalid_type", f"input is {_seen(value)}, expected {_EXPECTED_INPUT}", param="input")
    if all(isinstance(one, str) for one in value):
        return [{"text": one} for one in value]
    if all(isinstance(one, dict) and "role" in one for one in value):
        return [_chat(value, "input")]
    if all(isinstance(one, dict) and "type" in one for one in value):
        _refuse_other_parts(value, "input")
        return [{"messages": [{"role": "user", "content": value}]}]
    if all(isinstance(one, dict) and "messages" in one for one in value):
        value = [one["messages"] for one in value]
    if all(isinstance(one, list) and one for one in value):
        return [_listed(one, f"input[{i}]") for i, one in enumerate(value)]
    raise Refusal(400, "invalid_type", f"input is a list of mixed things, expected {_EXPECTED_INPUT}", param="input")


def _seen(value: Any) -> str:
    return "an empty list" if value == [] else shown(value)


def _listed(value: list[Any], param: str) -> Input:
    if all(isinstance(one, dict) and "type" in one and "role" not in one for one in value):
        _refuse_other_parts(value, param)
        return {"messages": [{"role": "user", "content": value}]}
    return _chat(value, param)


def _chat(messages: list[Any], param: str) -> Input:
    for i, message in enumerate(messages):
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            _refuse_other_parts(message["content"], f"{param}[{i}].content")
    return {"messages": messages}


def _refuse_other_parts(parts: Sequence[Any], param: str) -> None:
    """Here a result stands for the whole input, so that what is not scored must not be in it."""
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and "image" in kind:
            raise Refusal(
                400,
                "image_not_scored",
                f"{param}[{i}] is an image; images are not scored, the guard reads text alone: send the text without "
                "it, and have images judged elsewhere",
                param=f"{param}[{i}]",
            )
        if isinstance(kind, str) and kind not in ("text", "input_text", "output_text", "refusal"):
            raise Refusal(
                400,
                "part_not_scored",
                f'{param}[{i}] is of type {shown(kind)}, which is not scored; expected {{"type": "text", "text"}}',
                param=f"{param}[{i}]",
            )


# edgeguard's own


def scores(body: Any) -> AskedRecords:
    """The body of POST /v1/score. Raises Refusal.

    A record, a list of records, or {"input": a record or a list, "model", "policy", "session", "explain"}. What an
    `input` has beside it may also stand in a lone record.
    """
    if isinstance(body, list):
        return AskedRecords(_numbered(body, None))
    body = _object(body)
    chosen = {key: _name(body, key) for key in _CHOSEN}
    explain = body.get("explain", False)
    if not isinstance(explain, bool):
        raise Refusal(400, "invalid_type", f"explain is {shown(explain)}, expected true or false", param="explain")
    if "input" not in body:
        rest = {key: value for key, value in body.items() if key not in _BESIDE}
        return AskedRecords(_records([rest]), "row", explain=explain, **chosen)
    given = body["input"]
    records = _numbered(given, "input") if isinstance(given, list) else _records([given])
    for what, asked in (("session", chosen["session"] is not None), ("explain", explain)):
        if asked and len(records) > 1:
            raise Refusal(400, "several_records", f"{what} is for one record, {len(records)} are given", param=what)
    return AskedRecords(records, "results", explain=explain, **chosen)


def _numbered(given: Sequence[Any], param: str | None) -> Records:
    """Their lines are their places, from 1 on; an id that an earlier one has is an error, as in a file."""
    if not given:
        raise Refusal(400, "empty_list", "the list of records is empty, expected at least one", param=param)
    numbered = (_on_line(one, n) for one, n in zip(_records(given), count(1), strict=False))
    return tuple(without_duplicates(numbered, ""))


def _on_line(one: Record | Failure, line: int) -> Record | Failure:
    if isinstance(one, Failure):
        return replace(one, line=line)
    found = replace(one, line=line)
    object.__setattr__(found, "checked", one.checked)
    return found


# LiteLLM's generic guardrail


def guardrail(body: Any) -> Checked:
    """The body of POST /beta/litellm_basic_guardrail_api. Raises Refusal.

    A response is judged after the conversation in `structured_messages`, where that ends with a user's turn; else each
    text stands alone.
    """
    body = _object(body)
    texts, kind = body.get("texts") or [], body.get("input_type", "request")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refusal(400, "invalid_type", f"texts is {shown(texts)}, expected a list of strings", param="texts")
    if kind not in ("request", "response"):
        raise Refusal(
            400, "invalid_type", f'input_type is {shown(kind)}, expected "request" or "response"', param="input_type"
        )
    if body.get("images"):
        raise Refusal(
            400,
            "image_not_scored",
            "images has an image; images are not scored, the guard reads text alone",
            param="images",
        )
    options = body.get("additional_provider_specific_params") or {}
    if not isinstance(options, dict) or options.get("on_flagged", "block") not in ("block", "replace"):
        raise Refusal(
            400,
            "invalid_type",
            'additional_provider_specific_params takes "model", "policy", and "on_flagged": "block" or "replace"',
            param="additional_provider_specific_params",
        )
    before = _conversation_before(body.get("structured_messages")) if kind == "response" else ()
    given = [*texts, *_arguments(body.get("tool_calls"))]
    records = _records(_answer(before, text) for text in given if text.strip())
    asked = AskedRecords(records, model=_name(options, "model"), policy=_name(options, "policy"))
    return Checked(asked, tuple(texts), options.get("on_flagged") == "replace")


def _answer(before: tuple[Message, ...], text: str) -> Input:
    return Record((*before, Message("assistant", text))) if before else {"text": text}


def _conversation_before(messages: Any) -> tuple[Message, ...]:
    """The turns that a response follows; () where there are none to be had."""
    found = understood({"messages": messages}) if isinstance(messages, list) and messages else None
    if isinstance(found, Record) and found.messages[-1].role == "user":
        return found.messages
    return ()


def _arguments(calls: Any) -> list[str]:
    """What calls of tools are given: text that a model has written."""
    functions = [call.get("function") for call in calls or [] if isinstance(call, dict)]
    given = [function.get("arguments") for function in functions if isinstance(function, dict)]
    return [text for text in given if isinstance(text, str)]
