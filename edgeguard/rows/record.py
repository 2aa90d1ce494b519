"""A record: one text or conversation to judge, made from the fields of a line, a row or a mapping.

A record has exactly one of `text`, `prompt` (with an optional `response`) or `messages` (OpenAI style),
and may have an `id` and `labels`. `inputs` reads them from files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgeguard.errors import RecordError, printable

MAX_RECORD = 16 * 2**20  # bytes of one line or row, characters of one text
CONTENT_FIELDS = ("text", "prompt", "response", "messages")
EXPECTED = 'each record needs "text", or "prompt" and optional "response", or "messages"'

_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "agent": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_SHOWN = 60  # characters of a value that a message quotes


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `role` is "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """One conversation to judge, the last message being the one judged.

    line    1-based line where it starts (JSONL, CSV), 1-based row (Parquet), 0 if made in Python
    labels  ground truth where the input has it, as given; () is "safe", None is "not given"
    """

    messages: tuple[Message, ...]
    id: str | int | None = None
    labels: tuple[str, ...] | None = None
    line: int = 0


@dataclass(frozen=True)
class BadRecord:
    """A place in the input where a record should be and is not scorable."""

    error: RecordError
    id: str | int | None = None
    line: int = 0


# ---------------------------------------------------------------- one record


def make_record(
    value: str | Mapping[str, object] | Record,
    *,
    line: int = 0,
    where: str = "record",
    text_field: str | None = None,
) -> Record:
    """A checked record from a text, from fields as in a JSONL line, or from a Record made by hand.

    `line` and `where` are for messages; a Record keeps its own line. Raises RecordError with its `kind`.
    """
    if isinstance(value, Record):
        messages = [{"role": m.role, "content": m.content} for m in value.messages]
        labels = None if value.labels is None else list(value.labels)
        fields: Mapping[str, object] = {"messages": messages, "id": value.id, "labels": labels}
        made = build_record(fields, line=value.line, where=where, text_field=None)
    elif isinstance(value, str):
        made = build_record({"text": value}, line=line, where=where, text_field=None)
    else:
        made = build_record(value, line=line, where=where, text_field=text_field)
    if isinstance(made, BadRecord):
        raise made.error
    return made


def build_record(fields: Mapping[str, object], *, line: int, where: str, text_field: str | None) -> Record | BadRecord:
    """A Record, or a BadRecord that says where and why it is none."""
    known: str | int | None = None
    try:
        known = _id(fields.get("id"))
        return Record(_conversation(fields, text_field), known, _labels(fields.get("labels")), line)
    except RecordError as error:
        return BadRecord(placed(error, where, line), known, line)


def readable_id(value: object) -> str | int | None:
    """The id if it is one, else None: an error row tells it where it can."""
    try:
        return _id(value)
    except RecordError:
        return None


def _id(value: object) -> str | int | None:
    if value is None:
        return None
    if isinstance(value, str):
        return _encodable(value, '"id"')
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise RecordError(f'"id" is {shown(value)}, expected a string or an integer', kind="invalid_type")


def _labels(value: object) -> tuple[str, ...] | None:
    """Ground truth: None where not given, () for "safe"."""
    if isinstance(value, str):
        is_json = value.lstrip().startswith(("[", "{"))
        value = parse_json(value, '"labels"', "write a JSON list or object") if is_json else re.split("[,;|]", value)
        if value == [""]:
            return None
    if value is None:
        return None
    if isinstance(value, Mapping):  # of names, each with whether it holds
        value = [name for name, holds in value.items() if holds]
    if not isinstance(value, list | tuple) or not all(isinstance(label, str) for label in value):
        raise RecordError(
            f'"labels" is {shown(value)}, expected a list of strings, or a string like "safe" or "S1,S2"',
            kind="invalid_type",
        )
    labels = tuple(_encodable(label.strip(), '"labels"') for label in value)
    if "" in labels or ("safe" in labels and len(labels) > 1):
        raise RecordError(
            f'"labels" is {shown(", ".join(labels))}, expected "safe" alone, or labels that are not empty',
            kind="invalid_type",
        )
    return () if labels == ("safe",) else labels


def _conversation(fields: Mapping[str, object], text_field: str | None) -> tuple[Message, ...]:
    """The record's turns, checked."""
    if text_field is not None:
        if fields.get(text_field) is None:
            raise RecordError(
                f"{shown(text_field)} is missing; --text-field says that it holds the text",
                kind="missing_field",
            )
        return (Message("user", _text(fields[text_field], shown(text_field))),)
    match [name for name in CONTENT_FIELDS if fields.get(name) is not None]:
        case ["messages"]:
            return _messages(fields["messages"])
        case ["text" | "prompt" as name]:
            return (Message("user", _text(fields[name], f'"{name}"')),)
        case ["prompt", "response"]:
            prompt = Message("user", _text(fields["prompt"], '"prompt"'))
            return prompt, Message("assistant", _text(fields["response"], '"response"'))
        case []:
            raise RecordError(f'"text" is missing; {EXPECTED}', kind="missing_field")
        case ["response"]:
            raise RecordError(f'"prompt" is missing beside "response"; {EXPECTED}', kind="missing_field")
        case names:
            given = " and ".join(f'"{name}"' for name in names)
            raise RecordError(f"{given} are both given; {EXPECTED}", kind="ambiguous")


def _messages(value: object) -> tuple[Message, ...]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # as CSV, and often Parquet, has it
        value = parse_json(value, '"messages"', "write it as a JSON list of messages")
    if not isinstance(value, list | tuple):
        raise RecordError(
            f'"messages" is {shown(value)}, expected a list of {{"role", "content"}}', kind="invalid_type"
        )
    if not value:
        raise RecordError('"messages" is an empty list, expected at least one user turn', kind="empty_text")
    messages = tuple(_message(item, f"message {n}") for n, item in enumerate(value, 1))
    for n, message in enumerate(messages):
        expected = "assistant" if n % 2 else "user"
        if message.role != expected:
            before = f'after "{messages[n - 1].role}"' if n else "as the first"
            raise RecordError(
                f'message {n + 1} is "{message.role}" {before}, expected "{expected}"; begin with "user" '
                "and alternate, joining turns of one role into one",
                kind="wrong_turn_order",
            )
    return messages


def _message(item: object, what: str) -> Message:
    if not isinstance(item, Mapping):
        raise RecordError(f'{what} is {shown(item)}, expected {{"role", "content"}}', kind="invalid_type")
    for name in ("role", "content"):
        if item.get(name) is None:
            raise RecordError(f'"{name}" of {what} is missing; each needs "role" and "content"', kind="missing_field")
    return Message(_role(item["role"], what), _content(item["content"], what))


def _role(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"the role of {what} is {shown(value)}, expected a string", kind="invalid_type")
    if value not in _ROLES:
        raise RecordError(
            f'the role of {what} is {shown(value)}, expected "user" or "assistant"; '
            "a guard judges only these turns, so leave the others (system, tool) out",
            kind="unknown_role",
        )
    return _ROLES[value]


def _content(value: object, what: str) -> str:
    """A message's text; the texts of OpenAI content parts are joined with a line end."""
    if not isinstance(value, list | tuple):
        return _text(value, f'"content" of {what}')
    return _text("\n".join(_part(part, what) for part in value), f'"content" of {what}')


def _part(part: object, what: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        seen = f"of type {shown(kind)}" if isinstance(kind, str) else shown(part)
        raise RecordError(
            f'a content part of {what} is {seen}, expected {{"type": "text", "text": "…"}}; only text can be judged',
            kind="invalid_type",
        )
    return text


def _text(value: object, what: str) -> str:
    """A text that can be judged: not blank, not too long, valid Unicode without NUL."""
    if not isinstance(value, str):
        raise RecordError(f"{what} is {shown(value)}, expected a string", kind="invalid_type")
    if len(value) > MAX_RECORD:
        raise too_large(what)
    if not value.strip():
        raise RecordError(f"{what} is {shown(value)}, expected some text", kind="empty_text")
    return _encodable(value, what)


def _encodable(text: str, what: str) -> str:
    """`text` itself. Raises RecordError for a NUL, which ends a C string, and for a lone surrogate."""
    if "\0" in text:
        raise RecordError(
            f"{what} has a NUL at character {text.index(chr(0)) + 1}: {shown(text)}; remove it",
            kind="invalid_text",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(
            f"{what} has a lone surrogate at character {error.start + 1}: {shown(text[error.start :])}; "
            "replace it or write the whole pair",
            kind="invalid_text",
        ) from None
    return text


def parse_json(text: str, what: str, advice: str) -> object:
    """The JSON value in `text`; RecordError that calls it `what` and ends with `advice`."""
    try:
        value: object = json.loads(text)
    except RecursionError:
        raise RecordError(f"{what} nests lists or objects too deep to be read; flatten it", kind="too_deep") from None
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{what} is not JSON: {error.msg} at character {error.pos + 1} of {shown(text.strip())}; {advice}",
            kind="invalid_json",
        ) from None
    except ValueError:  # Python refuses to convert integers of more than 4,300 digits
        raise RecordError(
            f"{what} holds a number with too many digits: {shown(text.strip())}; write it as a string",
            kind="invalid_json",
        ) from None
    return value


# ---------------------------------------------------------------- words


def placed(error: RecordError, where: str, line: int) -> RecordError:
    """The same error with its file and line in front."""
    place = f"{where}:{line}" if line else where
    return RecordError(f"{place}: {error}", kind=error.kind)


def too_large(what: str) -> RecordError:
    """The error for a line, row or text over MAX_RECORD."""
    return RecordError(f"{what} is longer than {MAX_RECORD // 2**20} MiB; shorten or split it", kind="too_large")


def shown(value: object) -> str:
    """A value for a message: short, on one line, without control characters."""
    if isinstance(value, str):
        ellipsis = "…" if len(value) > _SHOWN else ""
        return f'"{printable(value[:_SHOWN])}{ellipsis}"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value) if abs(value) < 10**_SHOWN else "a very long number"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
