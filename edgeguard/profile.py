"""A guard profile: how a guard is asked, how its answer is written, and what its labels mean.

A profile is a TOML file. Every mistake in it is a ProfileError that names the file, the line and the key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, cast, get_args

from edgeguard.errors import ProfileError, did_you_mean
from edgeguard.grammar import AnswerGrammar, read_grammar
from edgeguard.pattern import Label
from edgeguard.tomlfile import MAX_BYTES, TomlTable, read_toml, show

MAX_CATEGORIES = 1000
CONVERSATION = "conversation"  # the role of a prompt's message that stands for the turns themselves
JUDGED = ("user", "assistant")  # who may have said what is judged
RESERVED = ("safe", "unsafe")  # labels every taxonomy has beside its categories

Template = Literal["own", "model"]
Verified = Literal["maker", "copies", "copy", "unknown"]


@dataclass(frozen=True)
class Category:
    """One label of the taxonomy. `forms` are its surface forms in the answer, the first is canonical.

    description           what belongs to it
    response_description  the same where a response is judged; "" for no other words
    """

    code: str
    name: str
    description: str = ""
    forms: tuple[str, ...] = ()
    response_description: str = ""

    def __post_init__(self) -> None:
        if not self.forms:
            object.__setattr__(self, "forms", (self.code,))


@dataclass(frozen=True)
class PromptMessage:
    """A chat message around the conversation. `text` is Jinja over messages, categories and roles.

    With the role "conversation" it is no message but the place of the conversation itself, turn by turn.
    """

    role: str
    text: str


@dataclass(frozen=True)
class PromptSpec:
    """How the guard is asked.

    template   "own": `text` is the whole prompt; "model": the chat template in the model file
    text       Jinja over messages, categories and roles, control tokens spelled out, and over the category that is
               asked about, where there is a question for each. "model": what the guard's own template is known to
               write, for files that carry none or another one; "" where it is not known
    control    the control tokens that `text` spells
    ends_with  what the rendered prompt must end with; "" where anything may
    messages   model: messages around the conversation; () passes the conversation itself
    variables  model: further variables of the chat template, such as enable_thinking: TOML values, in whose texts
               {{ category.code }} is the code that is asked about
    judges     whose turn may be the last: a guard of responses alone has nothing to say about a prompt
    user, assistant  display names of the roles
    """

    template: Template
    text: str = ""
    control: tuple[str, ...] = ()
    ends_with: str = ""
    messages: tuple[PromptMessage, ...] = ()
    variables: tuple[tuple[str, Any], ...] = ()
    judges: tuple[str, ...] = JUDGED
    user: str = "User"
    assistant: str = "Agent"


@dataclass(frozen=True)
class Questions:
    """One prompt for each category, the answers being verdicts.

    asked     codes, in the taxonomy's order
    umbrella  the code whose question decides `unsafe`; None: any of them does
    """

    asked: tuple[str, ...]
    umbrella: str | None = None


@dataclass(frozen=True)
class Fact:
    """Where something that a profile says is from, and how sure it is.

    verified  "maker": read in the maker's own source; "copies": several independent public copies agree; "copy": one
              public copy; "unknown": nobody has seen it, and the model file must say it
    """

    about: str
    source: str
    verified: Verified


@dataclass(frozen=True)
class SelfTest:
    """Two texts on which the guard must give different verdicts."""

    safe: str
    unsafe: str


@dataclass(frozen=True)
class Detect:
    """By what a model file is known to be this guard. Names are compared without case, spaces, - and _.

    A file matches by its name (one of name_contains) or by its chat template (all of template_contains, none of
    template_lacks). One whose name holds any of name_lacks does not, whatever its template: a guard that was made
    from another one may carry that one's. `architectures`, where given, must hold its architecture.
    """

    name_contains: tuple[str, ...] = ()
    name_lacks: tuple[str, ...] = ()
    template_contains: tuple[str, ...] = ()
    template_lacks: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()

    def matches(self, architecture: str, name: str, chat_template: str | None) -> bool:
        """Is this the guard?"""
        if self.architectures and architecture not in self.architectures:
            return False
        plain = _plain(name)
        if any(_plain(part) in plain for part in self.name_lacks):
            return False
        by_name = any(_plain(part) in plain for part in self.name_contains)
        return by_name or (bool(self.template_contains) and self.fits_template(chat_template or ""))

    def fits_template(self, chat_template: str) -> bool:
        """Has the chat template all of template_contains and none of template_lacks?"""
        return all(part in chat_template for part in self.template_contains) and not any(
            part in chat_template for part in self.template_lacks
        )


@dataclass(frozen=True)
class Profile:
    """A guard, as data.

    questions         a prompt for each category; None for one prompt about all of them
    stop              control tokens that end an answer; () for the model file's own
    min_grammar_mass  in [0, 1]: a record with less mass on the grammar is an error, never "safe"
    facts             where what it says is from
    source            the file it came from
    shipped           it comes with edgeguard, so its texts are no stranger's
    """

    name: str
    version: str
    description: str
    taxonomy: str
    taxonomy_version: str
    categories: tuple[Category, ...]
    answer: AnswerGrammar
    prompt: PromptSpec
    questions: Questions | None = None
    stop: tuple[str, ...] = ()
    min_grammar_mass: float = 0.5
    self_test: SelfTest | None = None
    detect: Detect = Detect()
    facts: tuple[Fact, ...] = ()
    source: str = ""
    shipped: bool = field(default=False, compare=False)

    @property
    def asked(self) -> tuple[Category, ...]:
        """The categories that get a probability, in order."""
        asked = None if self.questions is None else self.questions.asked
        return tuple(c for c in self.categories if asked is None or c.code in asked)

    def asking(self, codes: Sequence[str]) -> Profile:
        """This profile with some of its questions alone: another guard, with another name.

        Raises ProfileError for a code that it has not, and where it has one question about all of them.
        """
        if self.questions is None:
            raise ProfileError(
                f"profile {self.name} asks one question about all of its categories; none can be left out",
                kind="no_questions",
            )
        known = [c.code for c in self.categories]
        if unknown := next((code for code in codes if code not in known), None):
            raise ProfileError(
                f"profile {self.name} has no question {unknown!r}{did_you_mean(unknown, known)}; "
                f"it has {', '.join(known)}"
            )
        asked = tuple(code for code in known if code in codes)
        if not asked:
            raise ProfileError(f"no question is left to ask; profile {self.name} has {', '.join(known)}")
        if asked == self.questions.asked:
            return self
        umbrella = self.questions.umbrella if self.questions.umbrella in asked else None
        return replace(self, name=f"{self.name}:{'+'.join(asked)}", questions=Questions(asked, umbrella))

    def judging(self, strictness: str) -> Profile:
        """This profile with one of its meanings of "unsafe"; one that is not its default has another name.

        Raises ProfileError for a strictness that it has not.
        """
        answer = self.answer.judging(strictness)
        return self if answer == self.answer else replace(self, name=f"{self.name}:{strictness}", answer=answer)


def variant_of(profile: Profile, policies: Sequence[str] | None, strictness: str | None) -> Profile:
    """The profile with some of its questions, and with a meaning of "unsafe"; None leaves them. Raises ProfileError."""
    profile = profile if policies is None else profile.asking(policies)
    return profile if strictness is None else profile.judging(strictness)


@dataclass(frozen=True)
class Refused:
    """A guard that is known and gets no scores, and why. Its file has `refused` in place of a prompt."""

    name: str
    description: str
    refused: str
    detect: Detect
    facts: tuple[Fact, ...]


def load_profile(name_or_path: str | Path) -> Profile:
    """A built-in profile by its name, or a profile file by its path. Raises ProfileError."""
    builtin = _builtin_files()
    if isinstance(name_or_path, str) and name_or_path in builtin:
        return _scored(_read_builtin(name_or_path))
    path = Path(name_or_path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = did_you_mean(str(name_or_path), builtin)
        raise ProfileError(
            f"there is no profile {str(name_or_path)!r}{near}; give the path of a TOML file, "
            f"or one of {', '.join(builtin)}"
        ) from None
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise ProfileError(f"{str(name_or_path)!r} is no path: {error}") from None
    return parse_profile(data, str(path))


def profile_text(name_or_path: str | Path) -> str:
    """The TOML of a profile that `load_profile` takes, to make another one from. Raises ProfileError."""
    load_profile(name_or_path)  # what is no profile is refused
    if name_or_path in _builtin_files():
        return _builtin_file(str(name_or_path)).read_text(encoding="utf-8")
    return Path(name_or_path).read_text(encoding="utf-8")


def list_profiles() -> list[Profile]:
    """The built-in profiles, by name."""
    return [found for name in _builtin_files() if isinstance(found := _read_builtin(name), Profile)]


def list_refused() -> list[Refused]:
    """The guards that are known and not scored, by name."""
    return [found for name in _builtin_files() if isinstance(found := _read_builtin(name), Refused)]


def detect_profile(*, architecture: str, name: str, chat_template: str | None) -> str | None:
    """The name of the one built-in profile that fits a model file's metadata, or None if not certain.

    Raises ProfileError for a guard that is known and refused.
    """
    for refused in list_refused():
        if refused.detect.matches(architecture, name, chat_template):
            raise _refusal(refused)
    fits = [p.name for p in list_profiles() if p.detect.matches(architecture, name, chat_template)]
    return fits[0] if len(fits) == 1 else None


def parse_profile(data: bytes, source: str) -> Profile:
    """A profile from the bytes of a TOML file. `source` is named in errors. Raises ProfileError."""
    return _scored(_read_file(read_toml(data, source)))


@lru_cache(maxsize=1)
def _builtin_files() -> tuple[str, ...]:
    folder = resources.files("edgeguard") / "profiles"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def _builtin_file(name: str) -> Traversable:
    return resources.files("edgeguard") / "profiles" / f"{name}.toml"


@lru_cache(maxsize=64)
def _read_builtin(name: str) -> Profile | Refused:
    found = _read_file(read_toml(_builtin_file(name).read_bytes(), f"edgeguard/profiles/{name}.toml"))
    return replace(found, shipped=True) if isinstance(found, Profile) else found


def _scored(found: Profile | Refused) -> Profile:
    if isinstance(found, Refused):
        raise _refusal(found)
    return found


def _refusal(refused: Refused) -> ProfileError:
    return ProfileError(f"{refused.name} gets no scores: {refused.refused}", kind="guard_refused")


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


# The profile's tables


def _read_file(top: TomlTable) -> Profile | Refused:
    return _read_refused(top) if "refused" in top.values else _read_profile(top)


def _read_refused(top: TomlTable) -> Refused:
    top.only("name", "description", "refused", "detect", "fact")
    return Refused(
        name=top.printable("name"),
        description=top.text("description", "", empty=True),
        refused=top.printable("refused"),
        detect=_read_detect(top.table("detect")),
        facts=_read_facts(top),
    )


def _read_profile(top: TomlTable) -> Profile:
    top.only(
        "name", "version", "description", "taxonomy", "taxonomy_version", "stop", "min_grammar_mass", "questions",
        "answer", "field", "readout", "prompt", "roles", "self_test", "detect", "category", "fact",
    )  # fmt: skip
    categories = _read_categories(top)
    questions = _read_questions(top, categories)
    codes = () if questions else tuple(Label(c.code, c.forms) for c in categories)
    return Profile(
        name=top.printable("name"),
        version=top.printable("version", "1"),
        description=top.text("description", "", empty=True),
        taxonomy=top.printable("taxonomy"),
        taxonomy_version=top.printable("taxonomy_version", "1"),
        categories=categories,
        answer=read_grammar(top, codes),
        prompt=_read_prompt(top),
        questions=questions,
        stop=top.texts("stop", ()),
        min_grammar_mass=top.share("min_grammar_mass", 0.5),
        self_test=_read_self_test(top.table("self_test")),
        detect=_read_detect(top.table("detect")),
        facts=_read_facts(top),
        source=top.source.name,
    )


def _read_questions(top: TomlTable, categories: Sequence[Category]) -> Questions | None:
    table = top.table("questions")
    if table is None:
        return None
    table.only("umbrella")
    if not categories:
        table.fail(None, "there is nothing to ask about; expected a [[category]] for each question")
    asked = tuple(c.code for c in categories)
    return Questions(asked, table.one_of("umbrella", asked) if "umbrella" in table.values else None)


def _read_facts(top: TomlTable) -> tuple[Fact, ...]:
    facts = []
    for table in top.tables("fact"):
        table.only("about", "source", "verified")
        verified = cast(Verified, table.one_of("verified", get_args(Verified)))
        source = table.printable("source", "") if verified == "unknown" else table.printable("source")
        facts.append(Fact(table.printable("about"), source, verified))
    return tuple(facts)


def _read_categories(top: TomlTable) -> tuple[Category, ...]:
    tables = top.tables("category")
    if len(tables) > MAX_CATEGORIES:
        tables[MAX_CATEGORIES].fail(None, f"more than {MAX_CATEGORIES} categories")
    categories: list[Category] = []
    owner: dict[str, str] = {}  # form → code
    for table in tables:
        category = _read_category(table)
        if any(category.code == c.code for c in categories):
            table.fail("code", f"code is {show(category.code)}, which an earlier category has")
        for form in category.forms:
            if form in owner:
                key = "forms" if "forms" in table.values else "code"
                table.fail(key, f"{key} has {show(form)}, which is also a form of {owner[form]}")
            owner[form] = category.code
        categories.append(category)
    return tuple(categories)


def _read_category(table: TomlTable) -> Category:
    table.only("code", "name", "description", "response_description", "forms")
    code = table.printable("code")
    if code in RESERVED:
        table.fail("code", f"code is {show(code)}, which every taxonomy has already; choose another")
    if "=" in code:
        table.fail("code", f'code is {show(code)}; a code has no "=", which stands between a field and its label')
    forms = table.texts("forms", (code,))
    if not forms:
        table.fail("forms", "forms is an empty list; expected at least one form, or no such key")
    return Category(
        code,
        table.printable("name"),
        table.text("description", "", empty=True),
        forms,
        table.text("response_description", "", empty=True),
    )


def _read_prompt(top: TomlTable) -> PromptSpec:
    table = top.table("prompt")
    if table is None:
        top.fail(None, "[prompt] is missing; it says how the guard is asked")
    template = cast(Template, table.one_of("template", get_args(Template)))
    table.only("template", "text", "control", "ends_with", "judges", "message", "variables")
    for key in ("message", "variables") if template == "own" else ():
        if key in table.values:
            table.fail(key, f'{key} has no place where template is "own"')
    for key in ("text", "control"):
        if key in table.values and "message" in table.values:
            table.fail(key, f"{key} has no place beside [[prompt.message]]: a prompt is the one or the other")
    if "control" in table.values and "text" not in table.values:
        table.fail("control", "control has no place without a text that spells its tokens")
    if template == "own" or "text" in table.values:
        table.text("text")
        table.check_jinja("text")
    roles = _read_roles(top.table("roles"))
    return PromptSpec(
        template=template,
        text=table.text("text", ""),
        control=_read_control(table),
        ends_with=table.text("ends_with", "", empty=True),
        messages=tuple(_read_message(t) for t in table.tables("message")),
        variables=_read_variables(table.table("variables")),
        judges=_read_judges(table),
        **roles,
    )


def _read_judges(table: TomlTable) -> tuple[str, ...]:
    judges = table.texts("judges", JUDGED)
    if not judges or not set(judges) <= set(JUDGED):
        said = ", ".join(map(show, judges))
        table.fail("judges", f'judges is [{said}]; expected "user", "assistant" or both, or no such key')
    return judges


def _read_control(table: TomlTable) -> tuple[str, ...]:
    control = table.texts("control", ())
    for token in control:
        if token not in table.values["text"]:
            table.fail("control", f"control has {show(token)}, which text does not spell")
    return control


def _read_message(table: TomlTable) -> PromptMessage:
    table.only("role", "text")
    role = table.one_of("role", ("system", "user", "assistant", CONVERSATION))
    if role == CONVERSATION:
        if "text" in table.values:
            table.fail("text", "text has no place where the role is the conversation, whose turns stand there")
        return PromptMessage(role, "")
    text = table.text("text")
    table.check_jinja("text")
    return PromptMessage(role, text)


def _read_variables(table: TomlTable | None) -> tuple[tuple[str, Any], ...]:
    if table is None:
        return ()
    for key, value in table.values.items():
        if bad := next((v for v in _leaves(value) if not isinstance(v, str | int | float | bool)), None):
            table.fail(
                key, f"{key} is {show(bad)}; expected texts, numbers, true or false, and tables or lists of them"
            )
    return tuple(table.values.items())


def _leaves(value: Any) -> list[Any]:
    """The values in tables and lists inside one another."""
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return [value] if inside is None else [leaf for v in inside for leaf in _leaves(v)]


def _read_roles(table: TomlTable | None) -> dict[str, str]:
    if table is None:
        return {}
    table.only("user", "assistant")
    return {key: table.printable(key) for key in table.values}


def _read_self_test(table: TomlTable | None) -> SelfTest | None:
    if table is None:
        return None
    table.only("safe", "unsafe")
    return SelfTest(table.text("safe"), table.text("unsafe"))


def _read_detect(table: TomlTable | None) -> Detect:
    if table is None:
        return Detect()
    known = ("name_contains", "name_lacks", "template_contains", "template_lacks", "architectures")
    table.only(*known)
    for key in ("name_contains", "name_lacks"):
        for part in table.texts(key, ()):
            if not _plain(part):
                table.fail(key, f"{key} has {show(part)}, which is in every name; expected letters or digits")
    return Detect(**{key: table.texts(key, ()) for key in known})
