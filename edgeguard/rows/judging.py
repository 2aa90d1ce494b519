"""One record in, one result out, in order: the loop that every command and `Guard.score_many` goes round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from edgeguard.errors import RecordError
from edgeguard.rows.record import Failure, Record, failure_of
from edgeguard.rows.shapes import id_of, make_record

Input = str | Mapping[str, Any] | Record | Failure
T = TypeVar("T")


def judged(
    records: Iterable[Input], judge: Callable[[Record], T], *, where: str = ""
) -> Iterator[tuple[Record | Failure, T | Failure]]:
    """Each record as it was understood, and what `judge` makes of it, as they come.

    A record that cannot be understood, or that `judge` raises a RecordError for, is a Failure in its place.

    where  the records' file, for the messages of what `judge` refuses
    """
    for given in records:
        record = understood(given)
        if isinstance(record, Failure):
            yield record, record
            continue
        try:
            result: T | Failure = judge(record)
        except RecordError as error:
            result = failure_of(error, record.id, where=where, line=record.line)
        yield record, result


def judged_together(
    records: Iterable[Input],
    judge: Callable[[Sequence[Record]], Sequence[T | RecordError]],
    n: int,
    *,
    where: str = "",
) -> Iterator[tuple[Record | Failure, T | Failure]]:
    """As `judged`, n records of the input at a time; those that can be understood go to `judge` together."""
    for block in blocks(map(understood, records), n):
        fit = [record for record in block if isinstance(record, Record)]
        yield from answered(block, judge(fit) if fit else (), where=where)


def blocks(records: Iterable[T], n: int) -> Iterator[tuple[T, ...]]:
    """n of them at a time, in order, fewer at the end."""
    records = iter(records)
    while block := tuple(islice(records, n)):
        yield block


def answered(
    block: Iterable[Record | Failure], results: Iterable[T | RecordError], *, where: str = ""
) -> Iterator[tuple[Record | Failure, T | Failure]]:
    """The records of a block, and in their order the results of those that are no Failure."""
    of_records = iter(results)
    for record in block:
        if isinstance(record, Failure):
            yield record, record
            continue
        result = next(of_records)
        if isinstance(result, RecordError):
            yield record, failure_of(result, record.id, where=where, line=record.line)
        else:
            yield record, result


def understood(given: Input) -> Record | Failure:
    """A record, checked; or why it is none. A Failure stays what it is."""
    if isinstance(given, Failure):
        return given
    try:
        return make_record(given)
    except RecordError as error:
        return failure_of(error, given.id if isinstance(given, Record) else id_of(given))
    except TypeError as error:
        return Failure(None, "invalid_type", str(error))
