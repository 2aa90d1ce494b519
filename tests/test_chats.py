"""Chats as logs have them, in the form that guards judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeguard.errors import RecordError
from edgeguard.rows.chats import conversation
from edgeguard.rows.readers import read_records
from edgeguard.rows.record import Failure, Message, Record

LOG = Path(__file__).parent / "data" / "openai-chats.jsonl"
CALLS = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def turn(role: str, content: object, **others: object) -> dict[str, object]:
    return {"role": role, "content": content, **others}


def said(messages: tuple[Message, ...]) -> str:
    """Who says what: `u:Hi a:Hello.`"""
    return " ".join(f"{message.role[0]}:{message.content}" for message in messages)


def kind_of(*turns: object, strict: bool = False) -> str:
    with pytest.raises(RecordError) as caught:
        conversation(list(turns), "messages", strict=strict)
    return caught.value.kind


def test_a_log_of_hard_cases_is_read_as_the_rules_say() -> None:
    # 13 of these 15 were errors.
    found = {record.id: record for record in read_records(LOG)}
    assert {id_: (said(r.messages), r.skipped) for id_, r in found.items() if isinstance(r, Record)} == {
        "plain": ("u:Hi a:Hello.", 0),
        "system": ("u:Hi", 1),
        "developer": ("u:Hi", 1),
        "tools": ("u:Weather? a:It is 12 °C.", 2),
        "function": ("u:Weather? a:It is 12 °C.", 2),
        "text-and-call": ("u:Weather? a:Let me look.\n\nIt is 12 °C.", 2),
        "image": ("u:What is this?", 1),
        "image-alone": ("u:What is this?", 1),
        "audio": ("u:Write it down.", 1),
        "refusal": ("u:Hurt the dog a:I will not.", 0),
        "greeting": ("u:Hi", 1),
        "two-users": ("u:Hi\n\nAre you there?", 0),
        "empty-answer": ("u:Hi\n\nAre you there?", 1),
    }
    assert {id_: r.kind for id_, r in found.items() if isinstance(r, Failure)} == {
        "ends-in-tool": "last_turn_not_judged",
        "wizard": "unknown_role",
    }


def test_strict_is_as_it_was_before_there_were_rules() -> None:
    found = {record.id: record for record in read_records(LOG, strict=True)}
    assert {id_: r.kind for id_, r in found.items() if isinstance(r, Failure)} == {
        **dict.fromkeys(("system", "developer", "wizard"), "unknown_role"),
        **dict.fromkeys(("tools", "function", "text-and-call", "ends-in-tool"), "invalid_type"),
        **dict.fromkeys(("image", "image-alone", "audio"), "invalid_type"),
        **dict.fromkeys(("greeting", "two-users"), "wrong_turn_order"),
        "empty-answer": "empty_text",
    }


PARTS = st.lists(
    st.builds(lambda text: {"type": "text", "text": text}, st.sampled_from(["p", "q"]))
    | st.sampled_from([{"type": "image_url", "image_url": {}}, {"type": "tool_result", "content": "no"}]),
    max_size=3,
)
TURNS = st.one_of(
    st.builds(turn, st.sampled_from(["user", "human", "assistant", "model"]), st.sampled_from(["a", "b", "c"]) | PARTS),
    st.builds(turn, st.sampled_from(["system", "developer", "tool", "function"]), st.just("no") | st.none()),
    st.builds(
        turn, st.just("assistant"), st.sampled_from([None, "", " \n", "d"]), tool_calls=st.sampled_from([[], CALLS])
    ),
)


def texts_of(item: dict[str, Any]) -> list[str]:
    """The texts of a user's or assistant's turn."""
    if item["role"] in ("system", "developer", "tool", "function"):
        return []
    content = item["content"]
    parts = [part.get("text", "") for part in content] if isinstance(content, list) else [content or ""]
    return [text for text in parts if text.strip()]


def holds_more(item: dict[str, Any]) -> bool:
    """Whether a turn holds anything that is not judged, or nothing that is."""
    parts = item["content"] if isinstance(item["content"], list) else []
    return not texts_of(item) or bool(item.get("tool_calls")) or any(part["type"] != "text" for part in parts)


@given(st.lists(TURNS, max_size=8))
def test_no_text_that_a_guard_judges_is_lost_in_silence(turns: list[dict[str, Any]]) -> None:
    try:
        messages, skipped = conversation(turns, "messages")
    except RecordError as error:
        assert error.kind in ("empty_text", "last_turn_not_judged", "wrong_turn_order")
        return
    assert [m.role for m in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"] * (len(messages) % 2)
    kept = [text for message in messages for text in message.content.split("\n") if text]
    wanted = [text for item in turns for text in texts_of(item)]
    leading = len(wanted) - len(kept)  # of the assistant, before the first user's turn
    assert kept == wanted[leading:]
    assert texts_of(turns[-1])[-1] == kept[-1]
    assert (skipped > 0) == (leading > 0 or any(map(holds_more, turns)))


@given(st.lists(TURNS, max_size=8))
def test_what_was_read_is_read_back_as_it_is_strict_too(turns: list[dict[str, Any]]) -> None:
    try:
        messages, _ = conversation(turns, "messages")
    except RecordError:
        return
    again = [turn(message.role, message.content) for message in messages]
    assert conversation(again, "messages", strict=True) == (messages, 0)


def test_what_is_left_out_is_counted_turn_by_turn_and_part_by_part() -> None:
    image = {"type": "image_url", "image_url": {}}
    text = {"type": "input_text", "text": "hi"}
    user = turn("user", [image, text, image])
    assert conversation([turn("system", "s"), user], "messages")[1] == 3
    answer = turn("assistant", [{"type": "thinking", "thinking": "…"}, {"type": "output_text", "text": "yes"}])
    assert conversation([user, answer], "messages")[1] == 3
    assert conversation([user, turn("assistant", "yes", tool_calls=CALLS)], "messages")[1] == 3


@pytest.mark.parametrize(
    "last",
    [
        turn("system", "s"),
        turn("tool", "t"),
        turn("assistant", None, tool_calls=CALLS),
        turn("user", [{"type": "image_url", "image_url": {}}]),
    ],
)
def test_a_last_turn_that_is_not_judgeable_is_an_error_that_says_so(last: object) -> None:
    with pytest.raises(RecordError, match="the last turn, which is the one judged, has nothing but") as caught:
        conversation([turn("user", "Hi"), last], "messages")
    assert caught.value.kind == "last_turn_not_judged"


@pytest.mark.parametrize(
    ("turns", "kind"),
    [
        ([turn("assistant", "Hello.")], "wrong_turn_order"),
        ([turn("user", "Hi"), turn("assistant", "")], "empty_text"),
        ([turn("user", " "), turn("user", "Hi")], "empty_text"),
        ([turn("user", None), turn("user", "Hi")], "missing_field"),
        ([turn("user", "Hi"), {"role": "assistant"}, turn("user", "Hi")], "missing_field"),
        ([turn("User", "Hi")], "unknown_role"),
        ([turn("", "Hi")], "unknown_role"),
        ([turn("user", [{"type": "smell"}])], "invalid_type"),
        ([turn("user", [{"text": "no type"}])], "invalid_type"),
        ([turn("assistant", "a\0b"), turn("user", "Hi")], "invalid_text"),
    ],
)
def test_what_no_rule_is_for_stays_an_error(turns: list[object], kind: str) -> None:
    assert kind_of(*turns) == kind


def test_sharegpts_turns_are_turns() -> None:
    log = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "12 °C"},
        {"from": "gpt", "value": "It is 12 °C."},
    ]
    messages, skipped = conversation(log, "conversations")
    assert (said(messages), skipped) == ("u:Hi a:Hello. u:Weather? a:It is 12 °C.", 3)
    assert kind_of({"from": "gandalf", "value": "no"}) == "unknown_role"
    assert kind_of({"from": "human"}) == "missing_field"


def test_items_of_openais_responses_are_turns() -> None:
    log = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "weather", "arguments": "{}", "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "12 °C"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is 12 °C."}]},
    ]
    assert conversation(log, "body.input")[1] == 3
