"""Numbers to pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_STEPS = (1.0, 2.0, 5.0, 10.0)
_LEAST = 1e-9  # what is nearer to each other, or to 0, is drawn as one: ticks have 12 decimals


@dataclass(frozen=True)
class Scale:
    """From [low, high] to [start, end] in pixels; end may be the smaller, as upward in SVG.

    log  by the logarithm: low must be over 0
    """

    low: float
    high: float
    start: float = 0.0
    end: float = 1.0
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"the scale goes from {self.low} to {self.high}; it must rise")
        if self.log and self.low <= 0:
            raise ValueError(f"the scale begins at {self.low}; a logarithmic one begins over 0")

    def __call__(self, value: float) -> float:
        """The pixel; a value outside is put at the edge."""
        return self.start + (self.end - self.start) * self._share(min(max(value, self.low), self.high))

    def _share(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def between(self, start: float, end: float) -> Scale:
        """The same over other pixels."""
        return replace(self, start=start, end=end)

    def ticks(self, most: int = 6) -> list[float]:
        """At most so many round numbers inside, rising; of a logarithmic scale 1, 2 or 5 times a power of ten."""
        return _log_ticks(self.low, self.high, most) if self.log else _ticks(self.low, self.high, most)


def around(*values: float, zero: bool = False, log: bool = False) -> Scale:
    """A scale that holds the values with some room: to round numbers, from 0 if asked. At least one must be finite."""
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not finite:
        raise ValueError("no value to draw")
    low, high = min(finite), max(finite)
    if log:
        return Scale(low / 1.25, high * 1.25, log=True)
    low = min(0.0, low) if zero else low
    size = max(abs(low), abs(high))
    if size < _LEAST:
        low, high, size = 0.0, 0.0, 1.0
    if high - low < _LEAST * max(1.0, size):
        low, high = (low - size / 2, high + size / 2) if not zero else (low, high + size)
    step = _step(high - low, 5)
    return Scale(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def _step(width: float, most: int) -> float:
    rough = width / max(1, most)
    power = 10 ** math.floor(math.log10(rough))
    return float(power * next(s for s in _STEPS if s * power >= rough * (1 - 1e-9)))


def _ticks(low: float, high: float, most: int) -> list[float]:
    step = _step(high - low, max(1, most - 1))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**p for p in powers for s in steps]
        found = [t for t in found if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]
        if len(found) <= most:
            break
    return found[:: max(1, math.ceil(len(found) / most))]


def tick_text(value: float) -> str:
    """`0.5`, `1,000`, `−2`: as short as it can be said."""
    if value == 0:
        return "0"
    said = f"{value:,.6g}" if 1e-4 <= abs(value) < 1e7 else f"{value:.0e}"
    return said.replace("-", "−")
