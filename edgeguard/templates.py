"""A guard's templates as text: the model file's chat template, or the profile's own, with a conversation filled in.

Templates come from strangers, so they are rendered within limits (`rendering.py`), and a template that drops a message
is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeguard.backend import Vocabulary
from edgeguard.errors import ProfileError, printable
from edgeguard.profile import CONVERSATION, Category, Profile
from edgeguard.rendering import TemplateFailed, expect, render
from edgeguard.rows.record import Message

WrittenBy = Literal["file", "profile"]
Render = Callable[[tuple[str, ...], Callable[[int], str]], str]  # (roles, text of message i) → the prompt
Data = Callable[[tuple[str, ...]], dict[str, Any]]  # roles → what a profile's own templates see beside the messages

# Texts that no template holds: private-use characters around what a template could rewrite or escape.
_TAIL = "<&\"'\\Éé\ue001"
SENTINEL = re.compile("\ue000(\\d+)" + re.escape(_TAIL))
MARK = "\ue002"  # stands inside a control spelling that is to stay text
_PRIVATE = re.compile("[\ue000-\ue002]")
# What a special token looks like: <think>, [INST], <｜User｜>
LOOKS_SPECIAL = re.compile(r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]")


def sentinel(message: int) -> str:
    """What stands for a message's text in a rendering; SENTINEL finds it."""
    return f"\ue000{message}{_TAIL}"


def not_judged(profile: Profile) -> str:
    """Why a conversation that ends with the other one's turn is refused."""
    if "user" in profile.prompt.judges:
        return (
            f"the last turn is the assistant's, and {profile.name} judges what a user says; "
            "give it the conversation up to the user's last turn, or use another guard"
        )
    return (
        f"the last turn is the user's, and {profile.name} judges what an assistant answers; "
        "give it the response too, or use another guard"
    )


def find_writer(profile: Profile, chat_template: str | None) -> WrittenBy:
    """Whose template writes the prompts. Raises ProfileError where neither can."""
    spec = profile.prompt
    if spec.template == "own":
        return "profile"
    if spec.messages and chat_template:
        return "file"
    # Without messages of its own, the profile leaves the policy to the model's template: it must be there.
    if chat_template and profile.detect.fits_template(chat_template):
        return "file"
    if spec.text:
        return "profile"
    if not chat_template:
        raise ProfileError(
            f"{profile.source}: the model file carries no chat template (tokenizer.chat_template), and this "
            "profile asks through it; convert the model with its template, or write a profile with "
            'template = "own"'
        )
    wanted = ", ".join(repr(text) for text in profile.detect.template_contains)
    raise ProfileError(
        f"{profile.source}: the chat template in the model file is not this guard's: it should hold {wanted}; "
        "use the original model's template, or another profile"
    )


def expect_strangers(profile: Profile | None) -> None:
    """Get ready for templates that do not come with edgeguard, where this profile may need any; None: not known yet."""
    if profile is None or not profile.shipped or profile.prompt.template == "model":
        expect()


@dataclass(frozen=True)
class Draft:
    """Writes a guard's prompts as text, control tokens spelled out: to be shown and compared, never to be asked.

    chat_template  the model file's own; None where the profile's text writes
    bos, eos       what the file's template sees as bos_token and eos_token
    question       the code that is asked about, where there is a question for each
    """

    profile: Profile
    chat_template: str | None = None
    bos: str = ""
    eos: str = ""
    question: str | None = None

    def write(self, messages: Sequence[Message], *, parts: bool = False) -> str:
        """The prompt about a conversation; `parts`: the file's template gets content as a list of parts.

        A template that drops a text is not refused here. Raises ProfileError; its kind is "template_refuses" and its
        data has what the template `said`, where the template itself refuses.
        """
        roles = tuple(m.role for m in messages)
        self._check_judged(roles)
        if self.chat_template is None:
            return _own_text(self.profile, self._data())(roles, lambda i: messages[i].content)
        render = _file_text(self.profile, self.chat_template, self._data(), bos=self.bos, eos=self.eos)
        return render(roles, lambda i: messages[i].content, parts)

    def chat(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        """The chat that a file's template would get, (role, text): [[prompt.message]], or the conversation itself."""
        self._check_judged([m.role for m in messages])
        return _own_messages(self.profile, self._data())([(m.role, m.content) for m in messages])

    def _check_judged(self, roles: Sequence[str]) -> None:
        if roles[-1] not in self.profile.prompt.judges:
            raise ProfileError(not_judged(self.profile))

    def _data(self) -> Data:
        asked = next((c for c in self.profile.categories if c.code == self.question), None)
        return _data(self.profile, asked, lambda text: text)


def draft(profile: Profile, vocabulary: Vocabulary, chat_template: str | None, *, by: WrittenBy) -> Draft:
    """What one of the two templates writes for a model of this vocabulary, about the first question of several."""
    asked = None if profile.questions is None else profile.questions.asked[0]
    if by == "profile":
        return Draft(profile, question=asked)
    bos, eos = _name_of(vocabulary, vocabulary.bos), _name_of(vocabulary, min(vocabulary.eog, default=None))
    return Draft(profile, chat_template, bos, eos, asked)


# Rendering


def renderer(
    profile: Profile,
    written_by: WrittenBy,
    chat_template: str | None,
    vocabulary: Vocabulary,
    names: Mapping[str, int],
    category: Category | None,
) -> Render:
    """What writes a prompt; `category` is what it asks about, None for all of them."""
    # A profile's names and descriptions are data: a control token spelled there stays text.
    data = _data(profile, category, _keep_text({*names, *vocabulary.control}))
    if written_by == "profile":
        return _try_once(profile.source, _own_text(profile, data))
    assert chat_template is not None
    ends = {"bos": _name_of(vocabulary, vocabulary.bos), "eos": _name_of(vocabulary, min(vocabulary.eog, default=None))}
    return _try_both(profile.source, _file_text(profile, chat_template, data, **ends))


def _data(profile: Profile, category: Category | None, guard: Callable[[str], str]) -> Data:
    """`guard` keeps a text of the profile from being a control token."""
    spec = profile.prompt
    own = [spec.text, *(message.text for message in spec.messages)]
    _refuse_private(profile, [*own, spec.user, spec.assistant, *_category_texts(profile)])

    def data(roles: tuple[str, ...]) -> dict[str, Any]:
        described = [_described(c, roles[-1], guard) for c in profile.categories]
        asked = {} if category is None else {"category": _described(category, roles[-1], guard)}
        return {
            "categories": described,
            "roles": {"user": guard(spec.user), "assistant": guard(spec.assistant)},
            **asked,
        }

    return data


def _own_text(profile: Profile, data: Data) -> Render:
    def written(roles: tuple[str, ...], text: Callable[[int], str]) -> str:
        messages = [{"role": role, "content": text(i)} for i, role in enumerate(roles)]
        return _run(profile, profile.prompt.text, {"messages": messages, **data(roles)}, "[prompt] text")

    return written


def _own_messages(profile: Profile, data: Data) -> Callable[[Sequence[tuple[str, str]]], list[tuple[str, str]]]:
    """What makes, of the turns of a conversation, (role, text), the chat that the model file's template gets."""

    def chat(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        if not profile.prompt.messages:
            return list(turns)
        messages = [{"role": role, "content": text} for role, text in turns]
        inner = {"messages": messages, **data(tuple(role for role, _ in turns))}
        written: list[tuple[str, str]] = []
        for n, message in enumerate(profile.prompt.messages, 1):
            if message.role == CONVERSATION:
                written += turns
            else:
                written.append((message.role, _run(profile, message.text, inner, f"[[prompt.message]] {n}")))
        return written

    return chat


def _file_text(
    profile: Profile, chat_template: str, data: Data, *, bos: str, eos: str
) -> Callable[[tuple[str, ...], Callable[[int], str], bool], str]:
    """What the model file's template writes; with content as a list of parts where the last argument is true."""
    _refuse_private(profile, [chat_template])
    chat = _own_messages(profile, data)
    variables: dict[str, Any] = {
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": True,
        "tools": None,
        "documents": None,
    }

    def written(roles: tuple[str, ...], text: Callable[[int], str], parts: bool) -> str:
        messages = chat([(role, text(i)) for i, role in enumerate(roles)])
        given = [{"role": r, "content": [{"type": "text", "text": t}] if parts else t} for r, t in messages]
        filled = {key: _filled(profile, value, data(roles)) for key, value in profile.prompt.variables}
        return _run(
            profile, chat_template, {"messages": given, **variables, **filled}, "the chat template", strict=False
        )

    return written


def _described(category: Category, judged: str, guard: Callable[[str], str]) -> dict[str, str]:
    """A category as templates see it, in the words for whose turn is judged."""
    by_response = judged == "assistant" and category.response_description
    return {
        "code": guard(category.code),
        "name": guard(category.name),
        "description": guard(category.response_description if by_response else category.description),
    }


def _filled(profile: Profile, value: Any, data: Mapping[str, Any]) -> Any:
    """A variable's value for a chat template: texts in it, however deep, are Jinja over the profile's data."""
    if isinstance(value, Mapping):
        return {key: _filled(profile, inner, data) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(profile, inner, data) for inner in value]
    if not isinstance(value, str) or "{" not in value:
        return value
    return _run(profile, value, data, "[prompt.variables]")


def _try_once(source: str, render: Render) -> Render:
    def checked(roles: tuple[str, ...], text: Callable[[int], str]) -> str:
        rendered = render(roles, text)
        if missing := _missing(rendered, len(roles)):
            raise ProfileError(_dropped(source, "[prompt] text", missing[0]))
        return rendered

    return checked


def _try_both(source: str, render: Callable[[tuple[str, ...], Callable[[int], str], bool], str]) -> Render:
    """Content as plain text, and, where a template drops that, as a list of parts.

    Llama-Guard-3-1B's template reads only the second and judges an empty conversation without an error.
    """

    def checked(roles: tuple[str, ...], text: Callable[[int], str]) -> str:
        first: ProfileError | None = None
        for parts in (False, True):
            try:
                rendered = render(roles, text, parts)
            except ProfileError as error:
                if error.kind == "template_over_limit":  # it would take as long again
                    raise
                first = first or error
                continue
            missing = _missing(rendered, len(roles))
            if not missing:
                return rendered
            first = first or ProfileError(_dropped(source, "the chat template", missing[0]))
        assert first is not None
        raise first

    return checked


def _missing(rendered: str, n: int) -> list[int]:
    there = {int(i) for i in SENTINEL.findall(rendered)}
    return [i for i in range(n) if i not in there]


def _dropped(source: str, what: str, message: int) -> str:
    return (
        f"{source}: {what} drops or rewrites message {message + 1}: an empty conversation would be judged; "
        "write every message's content as it is"
    )


def _category_texts(profile: Profile) -> list[str]:
    return [text for c in profile.categories for text in (c.code, c.name, c.description, c.response_description)]


def _refuse_private(profile: Profile, texts: Iterable[str]) -> None:
    for text in texts:
        if found := _PRIVATE.search(text):
            code = f"U+{ord(found[0]):04X}"
            raise ProfileError(f"{profile.source}: a template holds {code}, which edgeguard uses itself; remove it")


def _keep_text(names: Iterable[str]) -> Callable[[str], str]:
    """A function that puts a mark into whatever might be a control token, after its first character."""
    spelled = one_of(name for name in names if len(name) > 1)

    def guard(text: str) -> str:
        for pattern in (spelled, LOOKS_SPECIAL):
            text = pattern.sub(lambda m: m[0][0] + MARK + m[0][1:], text) if pattern else text
        return text

    return guard


def one_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of the texts, the longest first as llama.cpp does; None for no texts."""
    longest_first = sorted(set(texts), key=lambda t: (-len(t), t))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _run(profile: Profile, text: str, variables: Mapping[str, Any], what: str, *, strict: bool = True) -> str:
    """What a template writes; `strict` for a profile's own texts, which are trusted where it comes with edgeguard."""
    try:
        return render(text, variables, strict=strict, trusted=strict and profile.shipped)
    except TemplateFailed as error:
        raise _failed(profile, what, error) from None


def _failed(profile: Profile, what: str, error: TemplateFailed) -> ProfileError:
    begin, said = f"{profile.source}: {what}", printable(error.said)
    if error.how == "syntax":
        return ProfileError(f"{begin}, line {error.line}: {said}")
    if error.how == "limit":
        return ProfileError(f"{begin} {said}, which no prompt needs; use another template", kind="template_over_limit")
    if error.how == "refuses":
        hint = ""
        if "system" in said.lower():
            hint = '; this model takes no system message: put the policy into one with role = "user"'
        return ProfileError(f"{begin} refuses: {said}{hint}", kind="template_refuses", said=error.said)
    return ProfileError(f"{begin} fails: {said}")


def _name_of(vocabulary: Vocabulary, token: int | None) -> str:
    if token is None:
        return ""
    return next((name for name, i in vocabulary.control.items() if i == token), text_of(vocabulary, token))


def text_of(vocabulary: Vocabulary, token: int) -> str:
    """What a token writes."""
    return vocabulary.pieces[token].decode(errors="replace")
