"""An iterator that is read in a thread of its own, as far ahead as there is room and no further."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class Ahead(Generic[T]):
    """Items of an iterable, in order, each as `make` gives it in the moment it is read.

    Where the source stops, one that waits for its next line, what was read before is not kept waiting. Where nobody
    takes items, no more of them are read: `most` wait, and one in hand. An error of the source, or of `make`, is
    raised in its place, behind the items before it. For one thread to iterate. Close it where it is left early: the
    thread ends as soon as the source gives its next item, and does not keep the process from ending.

    most      items that may wait
    weigh     an item's weight; heaviest: what those that wait may weigh together, but for one that is alone
    """

    def __init__(
        self,
        items: Iterable[S],
        make: Callable[[S], T],
        *,
        most: int,
        weigh: Callable[[S], int] = lambda item: 0,
        heaviest: int = 0,
    ) -> None:
        self._most, self._heaviest, self._weight = most, heaviest, 0
        self._waiting: deque[tuple[T, int]] = deque()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._read, args=(iter(items), make, weigh), daemon=True).start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._closed)
            if self._waiting:
                item, weight = self._waiting.popleft()
                self._weight -= weight
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def number_within(self, seconds: float) -> int | None:
        """How many items there are, where the source has ended by then; None where there is more, or may be."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not self._has_room(0), seconds)
            return len(self._waiting) if self._ended else None

    def close(self) -> list[T]:
        """Read no more; what was read and not taken."""
        with self._changed:
            self._closed = True
            left = [item for item, _ in self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
            return left

    def _has_room(self, weight: int) -> bool:
        if len(self._waiting) >= self._most:
            return False
        return not self._waiting or self._weight + weight <= self._heaviest

    def _read(self, items: Iterator[Any], make: Callable[[Any], T], weigh: Callable[[Any], int]) -> None:
        block_interrupts()
        try:
            for item in items:
                weight = weigh(item)
                with self._changed:
                    self._changed.wait_for(lambda weight=weight: self._closed or self._has_room(weight))  # type: ignore[misc]
                    if self._closed:
                        return
                    self._waiting.append((make(item), weight))
                    self._weight += weight
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


def block_interrupts() -> None:
    """In a thread: leave Ctrl-C to the main thread, and let the processes that are started here not hear it."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
