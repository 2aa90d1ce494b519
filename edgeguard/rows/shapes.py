"""The shapes of fields that become a record: a text, a prompt and its response, or a chat.

A record has exactly one of `text`, `prompt` (with an optional `response`) or `messages`; ShareGPT's `conversations` and
the `body` of an OpenAI Batch request are chats too. `Fields` names others. It may have an `id`.
What else a line holds is not looked at: ground truth is `evaluation/truth.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from edgeguard.errors import RecordError
from edgeguard.rows.chats import conversation
from edgeguard.rows.record import Id, Message, Record, as_checked
from edgeguard.rows.values import checked_id, checked_text, readable_id, shown

CHATS = ("messages", "conversations", "conversation")  # OpenAI; ShareGPT; LMSYS-Chat and WildChat
CONTENT = ("text", "prompt", "response", *CHATS)
EXPECTED = 'each record needs "text", or "prompt" and optional "response", or "messages"'

# What the fields are called elsewhere. None is taken on its own: the error names it.
_ALIKE = {
    "text": ("txt", "content", "comment", "comment_text", "tweet", "sentence", "message", "post", "utterance", "body"),
    "prompt": ("user_input", "user_prompt", "instruction", "question", "query", "input", "behavior", "goal"),
    "response": (
        *("completion", "model_output", "output", "answer", "reply", "generation", "model_response"),
        *("bot_response", "assistant_response", "response_text", "generated_text", "llm_response"),
    ),
    "messages": ("chat", "dialog", "dialogue", "turns", "history"),
}
_LISTS = CHATS[1:]  # words that files have for other things too, so that a text there is no chat
_ABSENT = object()


@dataclass(frozen=True)
class Fields:
    """Names of the fields, or columns, that hold a record; a dot reaches into an object. None: the usual ones.

    text      the text, alone
    prompt    what the user says: alone, or with the response. Names `response` only: the prompt is `prompt`
    response  what the assistant answers; a record without one has null there
    messages  a chat
    id        the record's id

    With one of the first four, the usual names of content are not looked at. Raises ValueError for two kinds of
    content.
    """

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        pair = self.prompt or self.response
        if sum(name is not None for name in (self.text, self.messages, pair)) > 1:
            raise ValueError(f"{self} names two kinds of content; a record is a text, a prompt and response, or a chat")

    @property
    def named(self) -> dict[str, str]:
        """What each is called, where one is named."""
        return {kind: name for kind, name in vars(self).items() if name is not None}

    @property
    def names_content(self) -> bool:
        """Whether it says what a record's content is called."""
        return any(kind != "id" for kind in self.named)


USUAL = Fields()


# ---------------------------------------------------------------- one record


def make_record(value: object, *, fields: Fields = USUAL, strict: bool = False, line: int = 0) -> Record:
    """A checked record from a text, from a mapping as in a line of JSONL, or from a Record made by hand.

    strict  what guards do not judge is an error, not left out
    line    where it stands; a Record keeps its own

    Raises RecordError with its `kind`, and TypeError for anything else.
    """
    if isinstance(value, Record):
        return value if value.checked else _remade(value, strict=strict)
    if isinstance(value, str):
        return as_checked(Record(_one(value, '"text"'), line=line))
    if isinstance(value, Mapping):
        id_ = checked_id(_value(value, _id_name(value, fields)))
        messages, skipped = _conversation(value, fields, strict=strict)
        return as_checked(Record(messages, id_, line, skipped))
    raise TypeError(f"{type(value).__name__} is no record; give a text, a mapping or a Record")


def id_of(value: object, fields: Fields = USUAL) -> Id:
    """The id of what may be no record otherwise; None without one."""
    return readable_id(_value(value, _id_name(value, fields))) if isinstance(value, Mapping) else None


def _remade(record: Record, *, strict: bool) -> Record:
    """A record made by hand, in the form of one that was read."""
    turns = [{"role": message.role, "content": message.content} for message in record.messages]
    messages, skipped = conversation(turns, "messages", strict=strict)
    return as_checked(Record(messages, checked_id(record.id), record.line, record.skipped + skipped))


def _conversation(fields: Mapping[str, object], names: Fields, *, strict: bool) -> tuple[tuple[Message, ...], int]:
    """The record's turns, and how many turns and parts of turns were left out."""
    check_names(fields, names)
    if names.text is not None:
        return _one(_value(fields, names.text), shown(names.text)), 0
    if names.messages is not None:
        return conversation(_value(fields, names.messages), names.messages, strict=strict)
    if names.prompt is not None or names.response is not None:
        return _pair(fields, names.prompt or "prompt", names.response or "response"), 0
    present = {name for name, value in fields.items() if value is not None and (name not in _LISTS or _is_list(value))}
    given = [name for name in CONTENT if name in present]
    if not given and isinstance(body := fields.get("body"), Mapping):
        return _batch_request(body, strict=strict)
    check_usual_names(present)
    match given:
        case [name] if name in CHATS:
            return conversation(fields[name], name, strict=strict)
        case ["text"]:
            return _one(fields["text"], '"text"'), 0
        case ["prompt"] | ["prompt", "response"]:
            return _pair(fields, "prompt", "response"), 0
        case _:
            both = " and ".join(f'"{name}"' for name in given)
            raise RecordError(f"{both} are both given; {EXPECTED}", kind="ambiguous")


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, str) and value.lstrip().startswith("["))


def _one(value: object, what: str) -> tuple[Message, ...]:
    if value is None:
        raise RecordError(f"{what} is null, expected some text", kind="missing_field")
    return (Message("user", checked_text(value, what)),)


def _pair(fields: Mapping[str, object], prompt: str, response: str) -> tuple[Message, ...]:
    asked, answer = _one(_value(fields, prompt), shown(prompt)), _value(fields, response)
    return asked if answer is None else (*asked, Message("assistant", checked_text(answer, shown(response))))


def _batch_request(body: Mapping[str, object], *, strict: bool) -> tuple[tuple[Message, ...], int]:
    """The chat or the text of an OpenAI Batch request: `messages`, or `input` as moderations and Responses have it.

    One record is one row, so an `input` of several texts is an error.
    """
    if body.get("messages") is not None:
        return conversation(body["messages"], "body.messages", strict=strict)
    match body.get("input"):
        case None:
            raise RecordError('"body" has no "messages" and no "input"; a request needs one', kind="missing_field")
        case [{"role": _} | {"type": "message"}, *_] as turns:
            return conversation(turns, "body.input", strict=strict)
        case [{"type": _}, *_] as parts:  # of one message, as moderations take it
            return conversation([{"role": "user", "content": parts}], "body.input", strict=strict)
        case [text]:
            return _one(text, '"body.input"'), 0
        case list() | tuple() as texts:
            raise RecordError(
                f'"body.input" is {shown(texts)}, and a record is one text; write one request for each',
                kind="several_texts",
            )
        case text:
            return _one(text, '"body.input"'), 0


def _id_name(fields: Mapping[str, object], names: Fields) -> str:
    if names.id is None and "id" not in fields and isinstance(fields.get("body"), Mapping):
        return "custom_id"
    return names.id or "id"


def _value(fields: Mapping[str, object], name: str) -> object:
    """The field of this name; None where there is none."""
    found = _reached(fields, name)
    return None if found is _ABSENT else found


def _reached(fields: object, name: str) -> object:
    """What the name leads to: a field called so, else, dot by dot, one inside objects."""
    if not isinstance(fields, Mapping):
        return _ABSENT
    if name in fields:
        return fields[name]
    first, dot, rest = name.partition(".")
    return _reached(fields[first], rest) if dot and first in fields else _ABSENT


# ---------------------------------------------------------------- names


def check_names(fields: Mapping[str, object], names: Fields) -> None:
    """Raises RecordError where a field that was named is not there, or a response was not named beside its prompt."""
    for kind, name in names.named.items():
        if _reached(fields, name) is _ABSENT:
            raise _no_such_field(kind, name, fields)
    if names.prompt is not None and names.response is None and fields.get("response") is None:
        _refuse_unclaimed({name for name, value in fields.items() if value is not None}, names.prompt)


def check_usual_names(present: Collection[str]) -> None:
    """Raises RecordError where fields of these names, none of them null, hold no record, or leave a response aside.

    kind  "unnamed_field", "unnamed_pair" where fields of other names look like the ones meant; "missing_field"
    """
    if not set(CONTENT) & set(present):
        raise _no_content(present)
    if "prompt" in present and not {"text", "response", *CHATS} & set(present):
        _refuse_unclaimed(present, "prompt")
    if "response" in present and not {"prompt", "text", *CHATS} & set(present):
        found = lookalike("prompt", present)
        if found is not None:
            raise _unnamed_pair(
                found, "response", f'"prompt" is missing beside "response"; {shown(found)} looks like it'
            )
        raise RecordError(f'"prompt" is missing beside "response"; {EXPECTED}', kind="missing_field")


def lookalike(kind: str, names: Collection[str]) -> str | None:
    """One of `names` that may be the field meant: another word for it, or it spelt otherwise."""
    plain = {_plain(name): name for name in names if isinstance(name, str) and name != kind}
    return next((plain[_plain(word)] for word in (kind, *_ALIKE[kind]) if _plain(word) in plain), None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _refuse_unclaimed(present: Collection[str], prompt: str) -> None:
    """A response under another name must not be left out in silence."""
    found = lookalike("response", [name for name in present if name != prompt])
    if found is not None:
        raise RecordError(
            f"{shown(prompt)} has {shown(found)} beside it, which looks like the response: name it as the field of "
            f"the response, or name {shown(prompt)} as the field of the text to judge it alone",
            kind="unnamed_field",
            field="response",
            name=found,
        )


def _no_content(present: Collection[str]) -> RecordError:
    missing = f'"text" is missing; {EXPECTED}'
    prompt, response = lookalike("prompt", present), lookalike("response", present)
    if prompt is not None and response is not None:
        return _unnamed_pair(
            prompt, response, f"{missing}; {shown(prompt)} and {shown(response)} look like such a pair"
        )
    for kind in ("text", "prompt", "messages"):
        if (found := lookalike(kind, present)) is not None:
            return RecordError(
                f"{missing}; {shown(found)} looks like the {kind}: name it as its field",
                kind="unnamed_field",
                field=kind,
                name=found,
            )
    return RecordError(missing, kind="missing_field")


def _unnamed_pair(prompt: str, response: str, message: str) -> RecordError:
    return RecordError(f"{message}: name both as their fields", kind="unnamed_pair", prompt=prompt, response=response)


def _no_such_field(kind: str, name: str, fields: Mapping[str, object]) -> RecordError:
    found = get_close_matches(name, [key for key in fields if isinstance(key, str)], n=1)
    hint = f"; did you mean {shown(found[0])}?" if found else f"; it is to hold the {kind}"
    return RecordError(f"{shown(name)} is missing{hint}", kind="no_such_field")
