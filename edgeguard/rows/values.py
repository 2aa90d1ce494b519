"""Values of records, which come from strangers: what they must be, and how a message shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from edgeguard.errors import RecordError, printable

MAX_RECORD = 16 * 2**20  # bytes of one line, row or element; characters of one text
_SHOWN = 60  # characters of a value that a message quotes


def checked_text(value: object, what: str) -> str:
    """A text that can be judged: not blank, not too long, valid Unicode without NUL. Raises RecordError."""
    if not isinstance(value, str):
        raise RecordError(f"{what} is {shown(value)}, expected a string", kind="invalid_type")
    if len(value) > MAX_RECORD:
        raise too_large(what)
    if not value.strip():
        raise RecordError(f"{what} is {shown(value)}, expected some text", kind="empty_text")
    return encodable(value, what)


def encodable(text: str, what: str) -> str:
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


def checked_id(value: object) -> str | int | None:
    """An id: a string, an integer, or None. Raises RecordError."""
    if value is None:
        return None
    if isinstance(value, str):
        return encodable(value, '"id"')
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise RecordError(f'"id" is {shown(value)}, expected a string or an integer', kind="invalid_type")


def readable_id(value: object) -> str | int | None:
    """The id if it is one, else None: an error row tells it where it can."""
    try:
        return checked_id(value)
    except RecordError:
        return None


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


def too_large(what: str) -> RecordError:
    """The error for a line, row, element or text over MAX_RECORD."""
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
