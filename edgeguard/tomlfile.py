"""A TOML file, read key by key. A mistake is a ProfileError that names the file, the line and the key:
`team.toml:12: [answer] pattern is 3; expected a text`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import jinja2

from edgeguard.errors import ProfileError, did_you_mean

MAX_BYTES = 1 << 20  # a profile is written by hand; a bigger file is a mistake or an attack
MISSING: Any = object()  # in place of a default: the key must be there


def read_toml(data: bytes, source: str) -> TomlTable:
    """The top table of a file of these bytes. `source` is named in errors. Raises ProfileError."""
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
    return TomlTable(values, (), TomlSource(source, text, _locate(text)))


Key = tuple[str | int, ...]

_OPAQUE = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'" r"|#[^\n]*", re.DOTALL
)
_WORD = r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*')"""
_DOTTED = rf"{_WORD}(?:[ \t]*\.[ \t]*{_WORD})*"
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")
_ASSIGN = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")


@dataclass(frozen=True)
class TomlSource:
    """A file's name, its text, and the line of each key."""

    name: str
    text: str
    lines: Mapping[Key, int]

    def line(self, key: Key) -> int:
        """1-based line of a key, or of the nearest table around it."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def text_of(self, line: int) -> str:
        """A line as it stands in the file; "" beyond its end."""
        lines = self.text.split("\n")
        return lines[line - 1] if line <= len(lines) else ""


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
            for n in range(1, len(table) + 1):
                lines.setdefault(table[:n], number)
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


@dataclass(frozen=True)
class TomlTable:
    """A table of the file, read key by key; each getter names its key and line when the value is wrong."""

    values: Mapping[str, Any]
    key: Key
    source: TomlSource

    def fail(self, key: str | None, message: str) -> NoReturn:
        """Raise for a key of this table, or for the table itself."""
        at = self.key if key is None else (*self.key, key)
        raise ProfileError(f"{self.source.name}:{self.source.line(at)}: {self.title}{message}")

    def fail_inside(self, key: str, at: int, message: str) -> NoReturn:
        """Raise for a character of a text, counted from 0: its line, and its column where the file has it literally."""
        text = self.values[key]
        begins = text.rfind("\n", 0, at) + 1  # of the line in question
        line = self._first_line(key) + text.count("\n", 0, at)
        indent = self.source.text_of(line).find(text[begins:].partition("\n")[0])
        column = f"{indent + at - begins + 1}:" if indent >= 0 else ""
        raise ProfileError(f"{self.source.name}:{line}:{column} {self.title}{key}: {message}")

    def _first_line(self, key: str) -> int:
        """Of a text: TOML drops a line break right after the opening quotes, so it may begin one line lower."""
        line = self.source.line((*self.key, key))
        opening = self.source.text_of(line).rstrip()
        return line + opening.endswith(('"""', "'''"))

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
                near = did_you_mean(key, known)
                self.fail(key, f"{key} is not a key here{near}; known are {', '.join(known)}")

    def get(self, key: str, default: Any, expected: str) -> Any:
        """The value of a key as it is; MISSING as the default refuses a table without it."""
        value = self.values.get(key, default)
        if value is MISSING:
            self.fail(None, f"{key} is missing; expected {expected}")
        return value

    def text(self, key: str, default: Any = MISSING, *, empty: bool = False) -> str:
        """A text. `empty` allows an empty one."""
        value = self.get(key, default, "a text")
        if not isinstance(value, str):
            self.fail(key, f"{key} is {show(value)}; expected a text")
        if not empty and not value.strip() and value != default:
            self.fail(key, f"{key} is empty; expected a text")
        return value

    def texts(self, key: str, default: Any = MISSING, *, empty: bool = False) -> tuple[str, ...]:
        """A list of texts. `empty` allows an empty text in it."""
        value = self.get(key, default, "a list of texts")
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            self.fail(key, f"{key} is {show(value)}; expected a list of texts")
        if not empty and "" in value:
            self.fail(key, f"{key} has an empty text in it; an empty form cannot be read in an answer")
        if len(set(value)) < len(value):
            self.fail(key, f"{key} has {show(_repeated(value))} twice")
        return tuple(value)

    def printable(self, key: str, default: Any = MISSING) -> str:
        """A text of one line without spaces at its ends."""
        value = self.text(key, default)
        if not value.isprintable() or value != value.strip():
            self.fail(key, f"{key} is {value!r}; expected printable text without spaces at its ends")
        return value

    def one_of(self, key: str, known: Sequence[str], default: Any = MISSING) -> str:
        """One of the known words."""
        expected = " or ".join(f'"{k}"' for k in known)
        value = self.get(key, default, expected)
        if value not in known:
            near = did_you_mean(value, known) if isinstance(value, str) else ""
            self.fail(key, f"{key} is {show(value)}{near}; expected {expected}")
        return cast(str, value)

    def share(self, key: str, default: float) -> float:
        """A number in [0, 1]."""
        value = self.get(key, default, "a number from 0 to 1")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            self.fail(key, f"{key} is {show(value)}; expected a number from 0 to 1")
        return float(value)

    def table(self, key: str) -> TomlTable | None:
        """A table in this one, None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(key, f"{key} is {show(value)}; expected a table, [{key}]")
        return TomlTable(value, (*self.key, key), self.source)

    def tables(self, key: str) -> list[TomlTable]:
        """An array of tables, [] where there is none."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            path = ".".join([*(str(k) for k in self.key), key])
            self.fail(key, f"{key} is {show(value)}; expected tables, each headed [[{path}]]")
        return [TomlTable(v, (*self.key, key, i), self.source) for i, v in enumerate(value)]

    def check_jinja(self, key: str) -> None:
        """Refuse a Jinja text with a syntax error, at the line of the error."""
        try:
            jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(self.values[key])
        except jinja2.TemplateSyntaxError as error:
            line = self._first_line(key) + error.lineno - 1
            raise ProfileError(f"{self.source.name}:{line}: {self.title}{key}: {error.message}") from None
        except RecursionError:
            self.fail(key, f"{key} nests its Jinja too deeply")


def show(value: object) -> str:
    """A value as a message quotes it, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"


def _repeated(values: Sequence[str]) -> str:
    return next(v for i, v in enumerate(values) if v in values[:i])
