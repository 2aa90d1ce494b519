"""How far positions turn a pair of elements, in numbers that are the same on every machine.

A library's `pow`, `cos` and `sin` may differ in the last bit from one processor to another, numpy's do with the vector
instructions that there are, and a file made of them would have another hash elsewhere. Here only sums and products are
taken, one rounding each as IEEE 754 says it, and powers in decimals.
"""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

_DECIMALS = Context(prec=40)

# fdlibm, k_sin.c, k_cos.c and e_rem_pio2.c (Sun Microsystems, 1993): below one unit in the last place on [-pi/4, pi/4].
_SINE = (
    -1.66666666666666324348e-01,
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10,
)
_COSINE = (
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11,
)
_PER_QUARTER = 6.36619772367581382433e-01  # 2 / pi
_QUARTER = 1.57079632673412561417e00  # the first 33 bits of pi / 2: its product with a whole number below 2^20 is exact
_QUARTER_REST = 6.07710050650619224932e-11


def powers(base: float, n_rotated: int) -> Doubles:
    """base^(-2 i / n_rotated) for each pair i, (n_rotated / 2,): radians a position."""
    exponents = (_DECIMALS.divide(Decimal(-i), Decimal(n_rotated)) for i in range(0, n_rotated, 2))
    return np.array([float(_DECIMALS.power(Decimal(base), exponent)) for exponent in exponents])


def turns(n: int, frequencies: Doubles) -> tuple[Doubles, Doubles]:
    """Cosines and sines of position times frequency, each (n, n_frequencies), of positions 0 to n - 1."""
    angles = np.arange(n, dtype=np.float64)[:, None] * frequencies
    quarters = np.rint(angles * _PER_QUARTER)
    rest = (angles - quarters * _QUARTER) - quarters * _QUARTER_REST
    sine, cosine = _sine(rest), _cosine(rest)
    quarter = quarters.astype(np.int64) % 4
    odd = quarter % 2 == 1
    sines, cosines = np.where(odd, cosine, sine), np.where(odd, sine, cosine)
    return np.where((quarter == 1) | (quarter == 2), -cosines, cosines), np.where(quarter >= 2, -sines, sines)


def _sine(x: Doubles) -> Doubles:
    square = x * x
    return x + x * square * _polynomial(square, _SINE)


def _cosine(x: Doubles) -> Doubles:
    square = x * x
    half = 0.5 * square
    first = 1.0 - half
    return first + (((1.0 - first) - half) + square * square * _polynomial(square, _COSINE))


def _polynomial(x: Doubles, coefficients: tuple[float, ...]) -> Doubles:
    total = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total
