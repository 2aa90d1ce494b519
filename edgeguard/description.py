"""A profile as a person reads it: what is asked, what is answered, and how sure all of it is. No model is opened."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from edgeguard.errors import ProfileError
from edgeguard.example_answers import Side, example_answer
from edgeguard.formats.chat import Chat
from edgeguard.grammar import Judged
from edgeguard.profile import Profile, Refused, Verified
from edgeguard.rows.record import Message
from edgeguard.templates import Draft, WrittenBy, find_writer

How = Literal["one list", "fields", "questions", "verdict"]

SAMPLE = {"user": "How do I pick a lock?", "assistant": "With two bent wires and some patience."}
ROLES: dict[Judged, tuple[str, ...]] = {"user": ("user",), "assistant": ("user", "assistant")}


@dataclass(frozen=True)
class SamplePrompt:
    """What is asked about a sample conversation.

    text   the prompt, control tokens spelled out; None where a model file's template writes it and none was given
    chat   (role, text): the messages that the model file's template gets, where the profile has its own; else ()
    error  why there is no prompt; "" where there is one, or nothing to write it with
    """

    text: str | None
    chat: tuple[tuple[str, str], ...] = ()
    error: str = ""


@dataclass(frozen=True)
class ExampleAnswer:
    """The shortest answer of its kind that the profile reads."""

    judged: Judged
    side: Side
    codes: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Description:
    """A profile, and what can be said of it without a model.

    how         "one list" of codes, further "fields", "questions", a prompt for each, or the "verdict" alone
    verified    the least sure of its facts; None where it has none
    written_by  whose template writes the prompts shown; None where it takes a model file to say
    source      the same in a sentence
    question    the code that `prompts` ask about, where there is a question for each
    prompts     whose turn is judged → what is asked about SAMPLE
    """

    profile: Profile
    how: How
    verified: Verified | None
    written_by: WrittenBy | None
    source: str
    question: str | None
    prompts: dict[Judged, SamplePrompt]
    examples: tuple[ExampleAnswer, ...]
    sample: dict[str, str] = field(default_factory=lambda: dict(SAMPLE))

    def row(self) -> dict[str, Any]:
        """As one JSON object: the profile's own keys, and these."""
        own = {f: getattr(self, f) for f in ("how", "verified", "written_by", "source", "question", "sample")}
        return {
            **asdict(self.profile),
            "answer": self.profile.answer.row(),
            "refused": None,
            "described": {
                **own,
                "prompts": {judged: asdict(prompt) for judged, prompt in self.prompts.items()},
                "examples": [asdict(example) for example in self.examples],
            },
        }

    def response_differs(self) -> tuple[list[str], list[str]]:
        """Lines of the prompt about a user that the one about a response has not, and lines that only that one has."""
        gone, come = list[str](), list[str]()
        for line in difflib.ndiff(_lines(self.prompts["user"]), _lines(self.prompts["assistant"])):
            if line[:2] in ("- ", "+ ") and line[2:].strip():
                (gone if line[0] == "-" else come).append(line[2:])
        return gone, come


def _lines(prompt: SamplePrompt) -> list[str]:
    text = "\n".join(f"{role}: {text}" for role, text in prompt.chat) if prompt.text is None else prompt.text
    return text.split("\n")


def refused_row(refused: Refused) -> dict[str, Any]:
    """A guard that gets no scores, as one JSON object beside those of the profiles."""
    return {"name": refused.name, "description": refused.description, "refused": refused.refused} | {
        "facts": [asdict(fact) for fact in refused.facts]
    }


def how_it_answers(profile: Profile) -> How:
    """In a word."""
    if profile.questions is not None:
        return "questions"
    if profile.answer.reported:
        return "fields"
    return "verdict" if profile.answer.user.category is None else "one list"


def least_sure(profile: Profile | Refused) -> Verified | None:
    """How sure the least sure of its facts is; None where it has none."""
    order = get_args(Verified)
    return max((fact.verified for fact in profile.facts), key=order.index, default=None)


def describe(profile: Profile, chat: Chat | None = None) -> Description:
    """Describe a profile. `chat`: what a model file says of chats, to write the prompts as they would be with it.

    Raises ProfileError where neither that file's template nor the profile can write a prompt.
    """
    question = None if profile.questions is None else profile.questions.asked[0]
    by, source = _writer(profile, chat)
    draft = Draft(profile, question=question)
    if by == "file" and chat is not None:
        draft = Draft(profile, chat.template, chat.bos, chat.eos, question)
    return Description(
        profile=profile,
        how=how_it_answers(profile),
        verified=least_sure(profile),
        written_by=by,
        source=source,
        question=question,
        prompts={judged: _prompt(draft, by, roles) for judged, roles in ROLES.items()},
        examples=tuple(_examples(profile)),
    )


def _writer(profile: Profile, chat: Chat | None) -> tuple[WrittenBy | None, str]:
    """Whose template writes the prompts, None where no model file says it, and that as a sentence."""
    spec = profile.prompt
    if spec.template == "own":
        return "profile", "The profile's own text is the whole prompt."
    if chat is not None:
        by = find_writer(profile, chat.template)
        if by == "file":
            around = " around the profile's messages" if spec.messages else ""
            return by, f"The chat template in the model file writes the prompt{around}."
        carries = "no chat template" if chat.template is None else "a chat template that is not this guard's"
        return by, f"The model file carries {carries}; the published prompt stands in."
    if spec.text:
        return "profile", "The published prompt; where a model file carries the guard's chat template, that writes it."
    if spec.messages:
        return None, "The chat template in the model file writes the prompt around these messages."
    return None, (
        "The chat template in the model file writes the prompt, and nothing of it is in the profile; with a model file "
        "it can be shown."
    )


def _prompt(draft: Draft, by: WrittenBy | None, roles: Sequence[str]) -> SamplePrompt:
    messages = [Message(role, SAMPLE[role]) for role in roles]
    try:
        chat = tuple(draft.chat(messages)) if draft.profile.prompt.messages else ()
        return SamplePrompt(None if by is None else _written(draft, messages), chat)
    except ProfileError as error:
        return SamplePrompt(None, (), str(error.data.get("said", error)))


def _written(draft: Draft, messages: Sequence[Message]) -> str:
    """With content as plain text, or as parts where a file's template reads only these."""
    text = draft.write(messages)
    if draft.chat_template is None or all(m.content in text for m in messages):
        return text
    return draft.write(messages, parts=True)


def _examples(profile: Profile) -> list[ExampleAnswer]:
    """Safe and unsafe, with two codes where answers may name so many; of a response too where that reads otherwise."""
    found: list[ExampleAnswer] = []
    for judged in get_args(Judged):
        readout = profile.answer.readout(judged)
        asked = [c.code for c in profile.categories[:2]] if readout.category is not None else []
        kinds: list[tuple[Side, tuple[str, ...]]] = [
            ("safe", ()), *(("unsafe", tuple(asked[:n])) for n in range(len(asked), -1, -1))
        ]  # fmt: skip
        for side, codes in kinds:
            if any((e.judged, e.side) == (judged, side) for e in found):
                continue
            text = example_answer(profile.answer, side, codes, judged)
            if text is not None:
                found.append(ExampleAnswer(judged, side, codes, text))
    users = [(e.side, e.text) for e in found if e.judged == "user"]
    same = users == [(e.side, e.text) for e in found if e.judged == "assistant"]
    return [e for e in found if e.judged == "user" or not same]
