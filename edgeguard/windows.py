"""A text that is too long to be read at once, in overlapping windows of whole sentences.

A text is taken for a chain of pieces: sentences; where one is too long for a window and its overlap, its lines; of
these the words; of these, where nothing parts them, runs of characters. A window is as many pieces in a row as it
holds, and the next one begins some pieces before its end. What counts as a sentence need not be right in every
language: it decides where a window ends, and the overlap is there for what lies across.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

LEAST = 32  # tokens of a window: under it nothing could be judged, and hardly a sentence is whole
OVERLAP = 8  # a window's overlap with the next one is at least this part of it
_JOINER = "\u200d"  # zero-width: what stands on both sides is one picture

Count = Callable[[str], int]
Fits = Callable[[str], bool]

# Lookbehinds and possessive quantifiers: a million full stops in a row must not take a million steps each.
_SENTENCES = re.compile(
    r"(?<![.!?…؟۔։።])[.!?…؟۔։።]++[\"'”’»)\]}*_]*+\s++"  # a full stop, and what closes with it, before a space
    r"|(?<![。！？｡．।॥။])[。！？｡．।॥။]++[\"'”’»)」』）】》〉]*+\s*+"  # writing without spaces, or with other stops
    r"|\n[^\S\n]*+\n\s*+"  # an empty line
)
_LINES = re.compile(r"\n\s*+")
_WORDS = re.compile(r"(?<!\s)\s++")


@dataclass(frozen=True)
class TextWindow:
    """A part of a text that is judged by itself.

    number      1 for the first; of: how many there are
    begin, end  its characters are text[begin:end], without the space around them
    """

    number: int
    of: int
    begin: int
    end: int


@dataclass(frozen=True)
class _Piece:
    """text[begin:end], with the space behind it, and its tokens without that."""

    begin: int
    end: int
    cost: int


def split(text: str, budget: int, tokens: Count, fits: Fits = lambda window: True) -> tuple[TextWindow, ...]:
    """The windows of a text that is not blank, in order; together they hold all of it but space between them.

    budget  tokens of a window, at least LEAST
    tokens  counts those of a piece of text
    fits    whether a text of no more tokens than that can be judged; where a single piece cannot, it is a window all
            the same

    Two windows in a row share at least an eighth of the budget, in whole pieces, at least one; nothing where the space
    between two pieces alone fills a window. A sentence is in a window whole if it has up to 7/16 of the budget. The
    same text gives the same windows. Raises ValueError for a smaller budget.
    """
    if budget < LEAST:
        raise ValueError(f"a window of {budget} tokens was asked for; expected at least {LEAST}")
    overlap = budget // OVERLAP
    first, longest = len(text) - len(text.lstrip()), (budget - overlap) // 2
    pieces = list(_pieces(text, first, len(text), tokens, longest, overlap, (_SENTENCES, _LINES, _WORDS)))
    row = _Row(text, pieces, budget, tokens, fits)
    spans: list[tuple[int, int]] = []
    begin = done = 0
    while done < len(pieces):
        end = row.farthest(begin, done + 1)
        while end is None and begin < done:  # less of an overlap
            begin += 1
            end = row.farthest(begin, done + 1)
        done = end or done + 1
        spans.append(row.span(begin, done))
        begin = row.back(begin, done, overlap)
    return tuple(TextWindow(i, len(spans), *span) for i, span in enumerate(spans, 1))


class _Row:
    """The pieces of a text, and how far a window reaches among them."""

    def __init__(self, text: str, pieces: Sequence[_Piece], budget: int, tokens: Count, fits: Fits) -> None:
        self._text, self._pieces, self._budget, self._tokens, self._fits = text, pieces, budget, tokens, fits
        self._before = [0, *accumulate(piece.cost for piece in pieces)]  # tokens before a piece, about

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """The characters of pieces[begin:end] without the space behind them."""
        first, last = self._pieces[begin].begin, self._pieces[end - 1].end
        return first, first + len(self._text[first:last].rstrip())

    def farthest(self, begin: int, least: int) -> int | None:
        """As far an end as fits, of a window from piece `begin` to `least` or farther; None where not even that fits.

        The costs of pieces add up to about a window's tokens: they say what to try, and the window itself is counted.
        """
        end = max(least, self._within(self._before[begin] + self._budget))
        used, over = self._measured(begin, end)
        while not over and (more := self._within(self._before[end] + self._budget - used)) > end:
            end = more
            used, over = self._measured(begin, end)
        while over and end > least:
            end = max(least, min(end - 1, self._within(self._before[end] - over)))
            used, over = self._measured(begin, end)
        return None if over else end

    def back(self, begin: int, end: int, overlap: int) -> int:
        """Where the window after pieces[begin:end] begins: not where this one did."""
        start = max(begin + 1, end - 1)
        while start > begin + 1 and self._before[end] - self._before[start] < overlap:
            start -= 1
        return start

    def _within(self, tokens: int) -> int:
        """How many pieces have no more tokens than that together, from the text's beginning on."""
        return bisect_right(self._before, tokens) - 1

    def _measured(self, begin: int, end: int) -> tuple[int, int]:
        """The tokens of pieces[begin:end] as one text, and how many of them are too many."""
        first, last = self.span(begin, end)
        window = self._text[first:last]
        used = self._tokens(window)
        over = max(0, used - self._budget)
        return used, over or int(not self._fits(window))


def _pieces(
    text: str, begin: int, end: int, tokens: Count, longest: int, least: int, levels: Sequence[re.Pattern[str]]
) -> Iterator[_Piece]:
    """text[begin:end] as a chain of pieces of at most `longest` tokens, cut behind what the first level finds, and
    what is too long then behind what the next one finds.

    Behind the last level come runs of characters of at most `least` tokens: small enough to make an overlap of.
    """
    cost = tokens(text[begin:end].rstrip())
    if cost <= longest:
        yield _Piece(begin, end, cost)
    elif not levels:
        yield from _runs(text, begin, end, tokens, longest, least)
    else:
        level, *further = levels
        ends = [match.end() for match in level.finditer(text, begin, end) if match.end() < end]
        for first, last in zip([begin, *ends], [*ends, end], strict=True):
            yield from _pieces(text, first, last, tokens, longest, least, further)


def _runs(text: str, begin: int, end: int, tokens: Count, longest: int, least: int) -> Iterator[_Piece]:
    """text[begin:end] in runs of at most `least` tokens, or of one character, or of `longest` that belong together.

    Only space may stand behind what is not space, and no run is space alone: the space goes with the last run.
    """
    unbroken = text[begin:end].rstrip()
    cost, stop = tokens(unbroken), begin + len(unbroken)
    place = None if cost <= least else _seam(text, begin, stop)
    if place is None and cost > longest:
        place = (begin + stop) // 2
    if place is None or place == begin:
        yield _Piece(begin, end, cost)
        return
    yield from _runs(text, begin, place, tokens, longest, least)
    yield from _runs(text, place, end, tokens, longest, least)


def _seam(text: str, begin: int, end: int) -> int | None:
    """About the middle of text[begin:end], not before an accent nor in a joined emoji; None where all is one such."""
    middle = (begin + end) // 2
    for place in chain(range(max(middle, begin + 1), end), range(middle - 1, begin, -1)):
        joined = _JOINER in (text[place - 1], text[place])
        if not joined and not unicodedata.category(text[place]).startswith("M"):
            return place
    return None
