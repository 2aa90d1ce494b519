"""A guard profile: how a guard is asked, how its answer is written, and what its labels mean.

A profile is a TOML file. Every mistake in it is a ProfileError that names the file, the line and the
key: `team.toml:12: [answer] separator is 3; expected a list of texts`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args

import jinja2

from edgeguard.errors import ProfileError

MAX_BYTES = 1 << 20  # a profile is written by hand; a bigger file is a mistake or an attack
MAX_CATEGORIES = 1000
RESERVED = ("safe", "unsafe")  # labels every taxonomy has beside its categories

Labels = Literal["list", "one", "verdict", "none"]
Template = Literal["own", "model"]
Value = str | int | float | bool


@dataclass(frozen=True)
class Category:
    """One label of the taxonomy. `forms` are its surface forms in the answer, the first is canonical."""

    code: str
    name: str
    description: str = ""
    forms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.forms:
            object.__setattr__(self, "forms", (self.code,))


@dataclass(frozen=True)
class AnswerGrammar:
    """What the guard may answer. The first of several forms is the canonical one.

    lead           what may stand before the verdict; "" where nothing does
    safe, unsafe   the verdict's surface forms
    labels         list: `unsafe` and codes; one: `unsafe` and one code; verdict: the answer is `safe` or
                   one category's form; none: the verdict only
    before_labels  between the verdict and the first code
    separator      between two codes
    end            what may stand between the last code (or the verdict) and the stop token
    """

    lead: tuple[str, ...] = ("",)
    safe: tuple[str, ...] = ("safe",)
    unsafe: tuple[str, ...] = ("unsafe",)
    labels: Labels = "list"
    before_labels: tuple[str, ...] = ("\n",)
    separator: tuple[str, ...] = (",", ", ")
    end: tuple[str, ...] = ("", "\n")


@dataclass(frozen=True)
class PromptMessage:
    """A chat message around the conversation. `text` is Jinja over messages, categories and roles."""

    role: str
    text: str


@dataclass(frozen=True)
class PromptSpec:
    """How the guard is asked.

    template   "own": `text` is the whole prompt; "model": the chat template in the model file
    text       own: Jinja over messages, categories and roles, control tokens spelled out
    control    own: the control tokens that `text` spells
    ends_with  what the rendered prompt must end with; "" where anything may
    messages   model: messages around the conversation; () passes the conversation itself
    variables  model: further variables of the chat template, such as enable_thinking
    user, assistant  display names of the roles
    """

    template: Template
    text: str = ""
    control: tuple[str, ...] = ()
    ends_with: str = ""
    messages: tuple[PromptMessage, ...] = ()
    variables: tuple[tuple[str, Value], ...] = ()
    user: str = "User"
    assistant: str = "Agent"


@dataclass(frozen=True)
class SelfTest:
    """Two texts on which the guard must give different verdicts."""

    safe: str
    unsafe: str


@dataclass(frozen=True)
class Detect:
    """By what a model file is known to be this guard. Names are compared without case, spaces, - and _.

    A file matches by its name (one of name_contains, none of name_lacks) or by its chat template (all of
    template_contains, none of template_lacks); `architectures`, where given, must hold its architecture.
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
        by_name = any(_plain(part) in plain for part in self.name_contains) and not any(
            _plain(part) in plain for part in self.name_lacks
        )
        return by_name or (bool(self.template_contains) and self.fits_template(chat_template or ""))

    def fits_template(self, chat_template: str) -> bool:
        """Has the chat template all of template_contains and none of template_lacks?"""
        return all(part in chat_template for part in self.template_contains) and not any(
            part in chat_template for part in self.template_lacks
        )


@dataclass(frozen=True)
class Profile:
    """A guard, as data.

    stop              control tokens that end an answer; () for the model file's own
    min_grammar_mass  in [0, 1]: a record with less mass on the grammar is an error, never "safe"
    source            the file it came from
    """

    name: str
    version: str
    description: str
    taxonomy: str
    taxonomy_version: str
    categories: tuple[Category, ...]
    answer: AnswerGrammar
    prompt: PromptSpec
    stop: tuple[str, ...] = ()
    min_grammar_mass: float = 0.5
    self_test: SelfTest | None = None
    detect: Detect = Detect()
    source: str = ""


def load_profile(name_or_path: str | Path) -> Profile:
    """A built-in profile by its name, or a profile file by its path. Raises ProfileError."""
    builtin = _builtin_files()
    if isinstance(name_or_path, str) and name_or_path in builtin:
        return _load_builtin(name_or_path)
    path = Path(name_or_path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = _did_you_mean(str(name_or_path), builtin)
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
    return [_load_builtin(name) for name in _builtin_files()]


def detect_profile(*, architecture: str, name: str, chat_template: str | None) -> str | None:
    """The name of the one built-in profile that fits a model file's metadata, or None if not certain."""
    fits = [p.name for p in list_profiles() if p.detect.matches(architecture, name, chat_template)]
    return fits[0] if len(fits) == 1 else None


def parse_profile(data: bytes, source: str) -> Profile:
    """A profile from the bytes of a TOML file. `source` is named in errors. Raises ProfileError."""
    if len(data) > MAX_BYTES:
        raise ProfileError(f"{source} is longer than 1 MiB; a profile is a short text written by hand")
    try:
        # utf-8-sig: editors on Windows put a byte order mark first. TOML takes \r\n as \n.
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ProfileError(f"{source}:{line}: byte {data[error.start]:#04x} is not UTF-8; save it as UTF-8") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(_syntax_error(source, text, str(error))) from None
    except RecursionError:
        raise ProfileError(f"{source} nests its values too deeply") from None
    return _read_profile(_Table(values, (), _Source(source, text, _locate(text))))


@lru_cache(maxsize=1)
def _builtin_files() -> tuple[str, ...]:
    folder = resources.files("edgeguard") / "profiles"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def _builtin_file(name: str) -> Traversable:
    return resources.files("edgeguard") / "profiles" / f"{name}.toml"


@lru_cache(maxsize=64)
def _load_builtin(name: str) -> Profile:
    return parse_profile(_builtin_file(name).read_bytes(), f"edgeguard/profiles/{name}.toml")


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# Where things stand in the file

Key = tuple[str | int, ...]

_OPAQUE = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'" r"|#[^\n]*", re.DOTALL
)
_WORD = r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*')"""
_DOTTED = rf"{_WORD}(?:[ \t]*\.[ \t]*{_WORD})*"
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")
_ASSIGN = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")


@dataclass(frozen=True)
class _Source:
    name: str
    text: str
    lines: Mapping[Key, int]

    def line(self, key: Key) -> int:
        """1-based line of a key, or of the nearest table around it."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


def _locate(text: str) -> dict[Key, int]:
    """The line of each table and key of a TOML text that is known to be valid."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        keeps = found[0] in "\"'" and not found.startswith(('"""', "'''"))
        return found if keeps else "\n" * found.count("\n")

    lines: dict[Key, int] = {}
    arrays: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(_OPAQUE.sub(blank, text).split("\n"), 1):
        if header := _HEADER.match(line):
            table = _header_key(header[2], len(header[1]) == 2, arrays)
            lines.setdefault(table, number)
        elif assign := _ASSIGN.match(line):
            key = table
            for word in _words(assign[1]):
                key = (*key, word)
                lines.setdefault(key, number)
    return lines


def _header_key(dotted: str, is_array: bool, arrays: dict[Key, int]) -> Key:
    """The key of a table header; in an array of tables the n-th is n."""
    key: Key = ()
    *above, last = _words(dotted)
    for word in above:
        key = (*key, word)
        if key in arrays:
            key = (*key, arrays[key])
    key = (*key, last)
    if is_array:
        arrays[key] = arrays.get(key, -1) + 1
        key = (*key, arrays[key])
    return key


def _words(dotted: str) -> list[str]:
    return [w[1:-1] if w[0] in "\"'" else w for w in re.findall(_WORD, dotted)]


def _syntax_error(source: str, text: str, message: str) -> str:
    at = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    line = int(at[1]) if at else text.count("\n") + 1
    return f"{source}:{line}: this is not TOML: {message[: at.start()] if at else message}"


# Reading tables

_MISSING: Any = object()


@dataclass(frozen=True)
class _Table:
    """A table of the file, read key by key; each getter names its key and line when the value is wrong."""

    values: Mapping[str, Any]
    key: Key
    source: _Source

    def fail(self, key: str | None, message: str) -> NoReturn:
        """Raise for a key of this table, or for the table itself."""
        at = self.key if key is None else (*self.key, key)
        raise ProfileError(f"{self.source.name}:{self.source.line(at)}: {self.title}{message}")

    @property
    def title(self) -> str:
        """`[answer] `, `[[category]] 3: ` or nothing at the top."""
        if not self.key:
            return ""
        words = ".".join(str(k) for k in self.key if isinstance(k, str))
        return f"[[{words}]] {self.key[-1] + 1}: " if isinstance(self.key[-1], int) else f"[{words}] "

    def only(self, *known: str) -> None:
        """Refuse other keys."""
        for key in self.values:
            if key not in known:
                near = _did_you_mean(key, known)
                self.fail(key, f"{key} is not a key here{near}; known are {', '.join(known)}")

    def get(self, key: str, default: Any, expected: str) -> Any:
        value = self.values.get(key, default)
        if value is _MISSING:
            self.fail(None, f"{key} is missing; expected {expected}")
        return value

    def text(self, key: str, default: Any = _MISSING, *, empty: bool = False) -> str:
        value = self.get(key, default, "a text")
        if not isinstance(value, str):
            self.fail(key, f"{key} is {_show(value)}; expected a text")
        if not empty and not value.strip() and value != default:
            self.fail(key, f"{key} is empty; expected a text")
        return value

    def texts(self, key: str, default: Any = _MISSING, *, empty: bool = False) -> tuple[str, ...]:
        """A list of texts. `empty` allows an empty text in it."""
        value = self.get(key, default, "a list of texts")
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            self.fail(key, f"{key} is {_show(value)}; expected a list of texts")
        if not empty and "" in value:
            self.fail(key, f"{key} has an empty text in it; an empty form cannot be read in an answer")
        if len(set(value)) < len(value):
            self.fail(key, f"{key} has {_show(_repeated(value))} twice")
        return tuple(value)

    def one_of(self, key: str, known: Sequence[str], default: Any = _MISSING) -> str:
        expected = " or ".join(f'"{k}"' for k in known)
        value = self.get(key, default, expected)
        if value not in known:
            near = _did_you_mean(value, known) if isinstance(value, str) else ""
            self.fail(key, f"{key} is {_show(value)}{near}; expected {expected}")
        return cast(str, value)

    def share(self, key: str, default: float) -> float:
        value = self.get(key, default, "a number from 0 to 1")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            self.fail(key, f"{key} is {_show(value)}; expected a number from 0 to 1")
        return float(value)

    def table(self, key: str) -> _Table | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(key, f"{key} is {_show(value)}; expected a table, [{key}]")
        return _Table(value, (*self.key, key), self.source)

    def tables(self, key: str) -> list[_Table]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            path = ".".join([*(str(k) for k in self.key), key])
            self.fail(key, f"{key} is {_show(value)}; expected tables, each headed [[{path}]]")
        return [_Table(v, (*self.key, key, i), self.source) for i, v in enumerate(value)]

    def check_jinja(self, key: str) -> None:
        """Refuse a Jinja text with a syntax error, at the line of the error."""
        try:
            jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(self.values[key])
        except jinja2.TemplateSyntaxError as error:
            line = self.source.line((*self.key, key))
            opening = self.source.text.split("\n")[line - 1].rstrip()
            # TOML drops the newline right after the opening quotes, so the text begins one line lower.
            line += error.lineno - (0 if opening.endswith(('"""', "'''")) else 1)
            raise ProfileError(f"{self.source.name}:{line}: {self.title}{key}: {error.message}") from None
        except RecursionError:
            self.fail(key, f"{key} nests its Jinja too deeply")


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"


def _repeated(values: Sequence[str]) -> str:
    return next(v for i, v in enumerate(values) if v in values[:i])


# The profile's tables


def _read_profile(top: _Table) -> Profile:
    top.only(
        "name", "version", "description", "taxonomy", "taxonomy_version", "stop", "min_grammar_mass",
        "answer", "prompt", "roles", "self_test", "detect", "category",
    )  # fmt: skip
    answer = _read_answer(top)
    return Profile(
        name=_printable(top, "name"),
        version=_printable(top, "version", "1"),
        description=top.text("description", "", empty=True),
        taxonomy=_printable(top, "taxonomy"),
        taxonomy_version=_printable(top, "taxonomy_version", "1"),
        categories=_read_categories(top, answer),
        answer=answer,
        prompt=_read_prompt(top),
        stop=top.texts("stop", ()),
        min_grammar_mass=top.share("min_grammar_mass", 0.5),
        self_test=_read_self_test(top.table("self_test")),
        detect=_read_detect(top.table("detect")),
        source=top.source.name,
    )


def _printable(table: _Table, key: str, default: Any = _MISSING) -> str:
    value = table.text(key, default)
    if not value.isprintable() or value != value.strip():
        table.fail(key, f"{key} is {value!r}; expected printable text without spaces at its ends")
    return value


def _read_answer(top: _Table) -> AnswerGrammar:
    table = top.table("answer")
    if table is None:
        top.fail(None, "[answer] is missing; it says how the guard answers, such as safe and unsafe")
    table.only("lead", "safe", "unsafe", "labels", "before_labels", "separator", "end")
    labels = cast(Labels, table.one_of("labels", get_args(Labels)))
    default = AnswerGrammar()
    grammar = AnswerGrammar(
        lead=table.texts("lead", default.lead, empty=True) or ("",),
        safe=table.texts("safe"),
        unsafe=table.texts("unsafe", () if labels == "verdict" else _MISSING),
        labels=labels,
        before_labels=table.texts("before_labels", default.before_labels, empty=True) or ("",),
        separator=table.texts("separator", default.separator),
        end=table.texts("end", default.end, empty=True) or ("",),
    )
    needed = ["safe"] + ["unsafe"] * (labels != "verdict") + ["separator"] * (labels == "list")
    for key in needed:
        if not getattr(grammar, key):
            table.fail(key, f"{key} is an empty list; expected at least one form")
    if both := set(grammar.safe) & set(grammar.unsafe):
        table.fail("unsafe", f"unsafe has {_show(min(both))}, which is also a form of safe")
    if labels == "verdict" and grammar.unsafe:
        table.fail("unsafe", 'unsafe has no place where labels is "verdict": the category is the verdict')
    return grammar


def _read_categories(top: _Table, answer: AnswerGrammar) -> tuple[Category, ...]:
    tables = top.tables("category")
    if not tables and answer.labels != "none":
        top.fail(None, f'[[category]] is missing; with labels = "{answer.labels}" there must be at least one')
    if tables and answer.labels == "none":
        tables[0].fail(None, 'with labels = "none" the answer names no category; remove it or set labels')
    if len(tables) > MAX_CATEGORIES:
        tables[MAX_CATEGORIES].fail(None, f"more than {MAX_CATEGORIES} categories")
    categories: list[Category] = []
    owner: dict[str, str] = {}  # form → code
    for table in tables:
        category = _read_category(table)
        if any(category.code == c.code for c in categories):
            table.fail("code", f"code is {_show(category.code)}, which an earlier category has")
        for form in category.forms:
            key = "forms" if "forms" in table.values else "code"
            if form in owner:
                table.fail(key, f"{key} has {_show(form)}, which is also a form of {owner[form]}")
            if answer.labels == "verdict" and form in answer.safe:
                table.fail(key, f"{key} has {_show(form)}, which is also a form of safe")
            owner[form] = category.code
        categories.append(category)
    if answer.labels == "list":
        _check_separable(tables, categories, answer.separator)
    return tuple(categories)


def _read_category(table: _Table) -> Category:
    table.only("code", "name", "description", "forms")
    code = _printable(table, "code")
    if code in RESERVED:
        table.fail("code", f"code is {_show(code)}, which every taxonomy has already; choose another")
    forms = table.texts("forms", (code,))
    if not forms:
        table.fail("forms", "forms is an empty list; expected at least one form, or no such key")
    return Category(code, _printable(table, "name"), table.text("description", "", empty=True), forms)


def _check_separable(tables: Sequence[_Table], categories: Sequence[Category], separator: Sequence[str]) -> None:
    """Refuse a form that reads as another form, a separator and more."""
    forms = {form for c in categories for form in c.forms}
    for table, category in zip(tables, categories, strict=True):
        for form in category.forms:
            for mark in (*separator, "\n"):
                parts = form.split(mark)
                heads = (mark.join(parts[:n]) for n in range(1, len(parts)))
                if head := next((h for h in heads if h in forms), None):
                    shown = mark.replace("\n", "\\n")
                    key = "forms" if "forms" in table.values else "code"
                    table.fail(key, f'{key} has {_show(form)}, which begins as {_show(head)} and "{shown}" do')


def _read_prompt(top: _Table) -> PromptSpec:
    table = top.table("prompt")
    if table is None:
        top.fail(None, "[prompt] is missing; it says how the guard is asked")
    template = cast(Template, table.one_of("template", get_args(Template)))
    foreign = ("message", "variables") if template == "own" else ("text", "control")
    for key in foreign:
        if key in table.values:
            table.fail(key, f'{key} has no place where template is "{template}"')
    table.only("template", "text", "control", "ends_with", "message", "variables")
    if template == "own":
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
        **roles,
    )


def _read_control(table: _Table) -> tuple[str, ...]:
    control = table.texts("control", ())
    for token in control:
        if token not in table.values["text"]:
            table.fail("control", f"control has {_show(token)}, which text does not spell")
    return control


def _read_message(table: _Table) -> PromptMessage:
    table.only("role", "text")
    role = table.one_of("role", ("system", "user", "assistant"))
    text = table.text("text")
    table.check_jinja("text")
    return PromptMessage(role, text)


def _read_variables(table: _Table | None) -> tuple[tuple[str, Value], ...]:
    if table is None:
        return ()
    for key, value in table.values.items():
        if not isinstance(value, str | int | float | bool):
            table.fail(key, f"{key} is {_show(value)}; expected a text, a number, true or false")
    return tuple(table.values.items())


def _read_roles(table: _Table | None) -> dict[str, str]:
    if table is None:
        return {}
    table.only("user", "assistant")
    return {key: _printable(table, key) for key in table.values}


def _read_self_test(table: _Table | None) -> SelfTest | None:
    if table is None:
        return None
    table.only("safe", "unsafe")
    return SelfTest(table.text("safe"), table.text("unsafe"))


def _read_detect(table: _Table | None) -> Detect:
    if table is None:
        return Detect()
    known = ("name_contains", "name_lacks", "template_contains", "template_lacks", "architectures")
    table.only(*known)
    for key in ("name_contains", "name_lacks"):
        for part in table.texts(key, ()):
            if not _plain(part):
                table.fail(key, f"{key} has {_show(part)}, which is in every name; expected letters or digits")
    return Detect(**{key: table.texts(key, ()) for key in known})
