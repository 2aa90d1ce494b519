"""Chats: the turns of a log as the messages that guards judge.

Guards know two roles, and their templates take a user's turn first and then the two in turn. What real logs hold is
brought into that form by these rules, one after the other:

1. A turn of another party (system, developer, tool, function), one that holds nothing but tool calls, images and the
   like, and an assistant's empty turn are left out.
2. Of a turn with text, what is no text is left out.
3. An assistant's turns before the first of a user are left out.
4. Turns of one role that then stand side by side are joined with a blank line.

The last turn is the one judged: where rule 1 would leave it out, the chat is an error. An unknown role and an unknown
kind of content are errors, as is a user's empty turn. What was left out is counted; strict, it is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile, groupby

from edgeguard.errors import RecordError
from edgeguard.rows.record import Message
from edgeguard.rows.values import checked_text, parse_json, shown

_JUDGED = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "agent", "model", "bot", "gpt", "chatgpt", "bing", "bard"), "assistant"),
}
_OTHERS = {
    *("system", "developer", "tool", "function"),  # OpenAI
    *("observation", "function_call", "tool_call", "tool_response", "ipython"),  # ShareGPT's kin, Hermes, Llama 3
}
# Items of OpenAI's Responses that are no message and have no role
_CALLS = {"function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning"}
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # type → its field
_OTHER_PARTS = {
    *("image_url", "input_image", "image", "image_file", "input_audio", "audio", "input_video", "video", "video_url"),
    *("file", "input_file", "document", "tool_use", "tool_result", "thinking", "redacted_thinking"),
}


@dataclass(frozen=True)
class _Turn:
    """One turn as it came.

    role   "user" or "assistant"; "" for another party's
    text   what can be judged of it, "" for nothing
    other  what else it holds, in words
    """

    role: str
    text: str
    other: tuple[str, ...] = ()


def conversation(value: object, what: str, *, strict: bool = False) -> tuple[tuple[Message, ...], int]:
    """The messages of a chat, and how many turns and parts were left out.

    value  a list of {"role", "content"} (OpenAI) or {"from", "value"} (ShareGPT), or such a list written as JSON
    what   the field's name, for messages

    Raises RecordError.
    """
    turns = [_turn(item, f"message {n}", strict=strict) for n, item in enumerate(_items(value, what), 1)]
    _check_last(turns[-1])
    if strict:
        _check_order(turns)
    kept = list(dropwhile(lambda turn: turn.role == "assistant", (turn for turn in turns if turn.text)))
    if not kept:
        raise RecordError("the chat has no user's turn; guards judge what stands after one", kind="wrong_turn_order")
    return _joined(kept), len(turns) - len(kept) + sum(len(turn.other) for turn in kept)


def _items(value: object, what: str) -> Sequence[object]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # as CSV, and often Parquet, has it
        value = parse_json(value, f'"{what}"', "write it as a JSON list of messages")
    if value == "" or value == [] or value == ():
        raise RecordError(f'"{what}" is {_nothing(value)}, expected at least one user turn', kind="empty_text")
    if not isinstance(value, list | tuple):
        raise RecordError(f'"{what}" is {shown(value)}, expected a list of {{"role", "content"}}', kind="invalid_type")
    return value


def _nothing(value: object) -> str:
    return "empty" if value == "" else "an empty list"


# ---------------------------------------------------------------- one turn


def _turn(item: object, what: str, *, strict: bool) -> _Turn:
    if not isinstance(item, Mapping):
        raise RecordError(f'{what} is {shown(item)}, expected {{"role", "content"}}', kind="invalid_type")
    by, holds = ("from", "value") if "role" not in item and "from" in item else ("role", "content")
    if item.get(by) is None and item.get("type") in _CALLS:
        role = str(item["type"])
    elif item.get(by) is None:
        raise RecordError(f'"{by}" of {what} is missing; each needs "{by}" and "{holds}"', kind="missing_field")
    else:
        role = _role(item[by], what, strict=strict)
    if role not in ("user", "assistant"):
        if strict:
            raise _unknown_role(role, what)
        return _Turn("", "", (f'the text of "{role}"',))
    turn = _content(item, role, holds, what)
    if strict and turn.other:
        raise RecordError(f"{what} holds {turn.other[0]}; only text can be judged", kind="invalid_type")
    if not turn.text and not turn.other and (strict or role == "user"):
        checked_text(turn.text, f'"{holds}" of {what}')  # raises: it is empty
    return turn


def _role(value: object, what: str, *, strict: bool) -> str:
    """ "user", "assistant", or another party's role as it is."""
    if not isinstance(value, str):
        raise RecordError(f"the role of {what} is {shown(value)}, expected a string", kind="invalid_type")
    if value not in _JUDGED and value not in _OTHERS:
        raise _unknown_role(value, what)
    return _JUDGED.get(value, value)


def _unknown_role(role: str, what: str) -> RecordError:
    return RecordError(
        f'the role of {what} is {shown(role)}, expected "user" or "assistant"; '
        "a guard judges only these turns, so leave the others (system, tool) out",
        kind="unknown_role",
    )


def _content(item: Mapping[str, object], role: str, holds: str, what: str) -> _Turn:
    """The turn of a user or an assistant; a text that is not blank is checked."""
    calls = tuple("tool calls" for name in ("tool_calls", "function_call") if item.get(name))
    value = item.get(holds)
    if value is None and isinstance(item.get("refusal"), str):
        value = item["refusal"]  # what an assistant says in place of an answer
    if value is None:
        if role == "user" or not (calls or holds in item):
            raise RecordError(f'"{holds}" of {what} is missing; each needs a role and a text', kind="missing_field")
        return _Turn(role, "", calls)
    where = f'"{holds}" of {what}'
    if not isinstance(value, list | tuple):
        return _Turn(role, _text_or_nothing(value, where), calls)
    parts = [_part(part, what) for part in value]
    texts = "\n".join(text for text, other in parts if not other)
    return _Turn(role, _text_or_nothing(texts, where), (*(other for _, other in parts if other), *calls))


def _text_or_nothing(value: object, what: str) -> str:
    """The text, checked; "" for a blank one."""
    return "" if isinstance(value, str) and not value.strip() else checked_text(value, what)


def _part(part: object, what: str) -> tuple[str, str]:
    """(its text, "") of a content part, or ("", what it is) of one that is no text."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and isinstance(kind, str):
        if kind in _OTHER_PARTS:
            return "", f"a content part of type {shown(kind)}"
        if kind in _TEXT_PARTS and isinstance(text := part.get(_TEXT_PARTS[kind]), str):
            return text, ""
    seen = f"of type {shown(kind)}" if isinstance(kind, str) else shown(part)
    raise RecordError(
        f'a content part of {what} is {seen}, expected {{"type": "text", "text": "…"}}; only text can be judged',
        kind="invalid_type",
    )


# ---------------------------------------------------------------- all turns


def _check_last(turn: _Turn) -> None:
    """Raises RecordError where the last turn is none that could be judged."""
    if turn.text:
        return
    if not turn.other:
        raise RecordError('the last turn, which is the one judged, is an empty "assistant" turn', kind="empty_text")
    raise RecordError(
        f"the last turn, which is the one judged, has nothing but {turn.other[0]}, which guards do not judge; "
        "end the chat with a user's or an assistant's text",
        kind="last_turn_not_judged",
    )


def _check_order(turns: Iterable[_Turn]) -> None:
    """Raises RecordError where a user does not begin, or one role has two turns in a row."""
    before = None
    for n, turn in enumerate(turns, 1):
        expected = "assistant" if before == "user" else "user"
        if turn.role != expected:
            where = f'after "{before}"' if before else "as the first"
            raise RecordError(
                f'message {n} is "{turn.role}" {where}, expected "{expected}"; begin with "user" '
                "and alternate, joining turns of one role into one",
                kind="wrong_turn_order",
            )
        before = turn.role


def _joined(turns: Iterable[_Turn]) -> tuple[Message, ...]:
    runs = groupby(turns, key=lambda turn: turn.role)
    return tuple(Message(role, "\n\n".join(turn.text for turn in run)) for role, run in runs)
