"""Jinja templates of strangers, rendered within limits: of what they may do, of time, memory and length.

The sandbox says what a template may do, and nothing of how long: `{% for %}` in `{% for %}` has no end, a doubled
string takes all memory, Jinja works constants out while it compiles. So a stranger's template is compiled and rendered
in a process of its own, which is ended where it passes a limit. The process is begun once and serves all renderings
of this one; what comes with edgeguard is rendered here and needs none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgeguard import process

MAX_RENDERED = 1 << 18  # characters; a conversation's own text is not among them
LIMITS = process.Limits(cpu=1, wall=4.0, memory=512 << 20)  # of one rendering; real ones take milliseconds and 25 MiB
# Some chat templates print today's date, which would change scores overnight. The date is the one that
# Llama 3.1's and 3.2's templates print where they are given no clock.
TODAY = datetime(2024, 7, 26)


_MANY = 1024  # shapes of templates that are remembered
_over: dict[tuple[str, tuple[str, ...]], str] = {}  # template, roles → the limit that it passed


class TemplateFailed(Exception):
    """A template that was not rendered.

    how   "syntax"; "refuses": it says so itself; "fails": in any other way; "limit": it passed one
    said  what it did, in words: "division by zero"
    line  of a syntax error, from 1; 0 elsewhere
    """

    def __init__(self, how: str, said: str, line: int = 0) -> None:
        super().__init__(said)
        self.how, self.said, self.line = how, said, line


def render(text: str, variables: Mapping[str, Any], *, strict: bool, trusted: bool) -> str:
    """What a template writes. Raises TemplateFailed.

    variables  JSON values
    strict     names that are not defined are errors
    trusted    it comes with edgeguard: rendered here, in this process
    """
    if trusted:
        return _render(text, variables, strict)
    # What passed a limit would take its seconds again for each question and each record. What is written follows from
    # the roles, so another conversation is none the worse for it.
    key = text, tuple(message["role"] for message in variables.get("messages", ()))
    if key in _over:
        raise TemplateFailed("limit", _over[key])
    try:
        answer = _SERVER.ask({"text": text, "variables": variables, "strict": strict})
    except process.OverLimit as error:
        answer = {"how": "limit", "said": str(error), "line": 0}
    if "written" in answer:
        return str(answer["written"])
    if answer["how"] == "limit":
        if len(_over) >= _MANY:
            _over.clear()
        _over[key] = answer["said"]
    raise TemplateFailed(answer["how"], answer["said"], answer["line"])


def expect() -> None:
    """Begin the process that renders strangers' templates: it starts while a model is being opened."""
    _SERVER.start()


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's text for training; here it only passes it on."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment(**options: Any) -> ImmutableSandboxedEnvironment:
    """Jinja as Hugging Face sets it up for chat templates: these come from strangers, hence the sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        **options,
    )
    environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


@lru_cache(maxsize=256)  # a profile has a text for each message, and a question for each category
def _compile(text: str, strict: bool) -> jinja2.Template:
    """`strict` is for a profile's own texts: what they mistype is an error."""
    options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True} if strict else {}
    return _environment(**options).from_string(text)


def _render(text: str, variables: Mapping[str, Any], strict: bool) -> str:
    chunks: list[str] = []
    room = MAX_RENDERED
    try:
        for chunk in _compile(text, strict).generate(variables):
            chunks.append(chunk)
            room -= len(chunk)
            if room < 0:
                raise TemplateFailed("limit", f"writes more than {MAX_RENDERED} characters")
    except TemplateFailed:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateFailed("syntax", str(error.message), error.lineno) from None
    except jinja2.TemplateError as error:  # raise_exception's message among them
        raise TemplateFailed("refuses", str(error)) from None
    except MemoryError:
        raise TemplateFailed("limit", f"takes more than {LIMITS.memory >> 20} MiB") from None
    except Exception as error:  # a stranger's template may fail in any way, RecursionError among them
        raise TemplateFailed("fails", f"{type(error).__name__}: {error}"[:1000]) from None
    return "".join(chunks)


def _answer(job: Any) -> dict[str, Any]:
    try:
        return {"written": _render(job["text"], job["variables"], job["strict"])}
    except TemplateFailed as error:
        return {"how": error.how, "said": error.said, "line": error.line}


def _child() -> NoReturn:
    process.serve_many(_answer, LIMITS)


_SERVER = process.Server(process.start("edgeguard.rendering"), LIMITS)
