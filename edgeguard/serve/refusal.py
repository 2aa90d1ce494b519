"""What is refused, in OpenAI's form: {"error": {"message", "type", "param", "code"}}. Codes are those of error rows.

Every message says what was expected. What was not scored is never answered with a score.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any

from edgeguard.errors import EdgeguardError, RecordError
from edgeguard.rows.record import Failure

_log = logging.getLogger("edgeguard.serve")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}
# Kinds of records that are refused: what the guard makes of a record, or what became of its process, is no mistake of
# who asks. All others are.
_STATUS = {"off_grammar": 422, "server_error": 500, "worker_died": 500, "worker_not_started": 503}


class Refusal(Exception):
    """A request that gets no score. `status` is the HTTP status, `code` a word for machines.

    param        the field of the request that it is about
    retry_after  seconds until it is worth asking again
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> Mapping[str, str]:
        """Beside the usual ones."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**found, "www-authenticate": "Bearer"} if self.status == 401 else found


def status_of(kind: str) -> int:
    """The HTTP status of a request whose one record failed so."""
    return _STATUS.get(kind, 400)


def refused(failure: Failure, param: str | None = None) -> Refusal:
    """A record that failed, as the whole request's error."""
    place = "" if param is None else f"{param}: "
    retry_after = 5 if failure.kind == "worker_not_started" else None
    return Refusal(
        status_of(failure.kind), failure.kind, f"{place}{failure.message}", param=param, retry_after=retry_after
    )


def where(error: BaseException) -> str:
    """A bug for the log: its class and its last lines of code, here and in the worker. Its message may have a text."""
    frames = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-1:]]
    notes = [line.strip() for note in getattr(error, "__notes__", ()) for line in note.splitlines()]
    frames += [line for line in notes if re.match(r'File ".*", line \d+, in ', line)][-1:]
    return f"{type(error).__name__} at {', '.join(frames) or 'no place that is known'}"


def failure_of_server(error: Exception, id_: str | int | None, line: int) -> Failure:
    """What stands in the place of a record that the server could not score: never a score."""
    if isinstance(error, RecordError):
        return Failure(id_, error.kind, str(error), line, error.data)
    if isinstance(error, EdgeguardError):
        return Failure(id_, error.kind or "server_error", str(error), line)
    _log.error("a record could not be scored: %s", where(error))
    return Failure(id_, "server_error", f"scoring failed in a way nobody foresaw ({type(error).__name__})", line)
