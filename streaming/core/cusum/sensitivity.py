"""What the CUSUM of ranks can see: how soon a change of a given size, and the smallest change within so many events; in closed form.

A statistic with limit h and allowance k, whose signal moves to mean m with long-run variance v, gets there after

    (h + o) / d - v / (2 d^2) (1 - exp(-2 d (h + o) / v)),   d = m - k,

events on average: a Brownian motion with that drift, reflected at 0, o = 1.166 of a step's deviation for the overshoot at both ends
(Siegmund 1985). Without a drift upwards it never gets there, but by chance. Of a signal's statistics the soonest counts. A change moves
a signal's mean and deviation as its table of values and the reference's law have it.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

from streaming.core import dependence
from streaming.core.cusum.calibration import Statistics
from streaming.core.cusum.signals import CAP, CLIP, Kind, Law, Signal
from streaming.core.reference import Codes, Floats

Change = Literal["shift", "factor", "share", "correlation"]

_OVERSHOOT = 1.166
_GRID = 401
_STEPS = 24
_NO_DRIFT = 1e-5
_FURTHEST = {"level": 6.0, "spread": 20.0}
NEVER = float("inf")

_CHANGES: dict[Kind, Change] = {"level": "shift", "spread": "factor", "pair": "correlation"}


@dataclass(frozen=True, slots=True)
class Sees:
    """What one signal sees of its kind of change: a "shift" in standard deviations (of the normal scores of ranks), a "factor" of the
    spread, a rise of a "share" from `before`, or a "correlation" from `before`.

    `smallest`: the size (a share or a correlation: its new value) that is seen within so many events on average; `inf` where none is.
    """

    signal: Signal
    change: Change
    before: float
    smallest: dict[int, float]


class Sensitivity:
    """Of the statistics that a reference's codes (columns x rows, in time order) gave."""

    def __init__(self, statistics: Statistics, codes: Codes) -> None:
        self._statistics = statistics
        signals = statistics.signals
        self.every = [*signals.singles, *signals.pairs]
        values = signals.of(codes)
        told = dependence.long_run(values - dependence.cycles(values))
        self._variance = values.var(axis=0) * told.ratio
        self._centre = values.mean(axis=0)
        self._laws = [_sorted(law) if signal.kind == "level" else law for signal, law in zip(signals.singles, signals.laws, strict=True)]
        self._mine = [np.flatnonzero(statistics.signal == number) for number in range(len(self.every))]

    def delay(self, number: int, size: float) -> float:
        """Events on average until signal `number` sees a change of this size (see `Sees`); `inf` where it never does."""
        mean, deviation = self._moved(number, size)
        chosen = self._mine[number]
        side = self._statistics.side[chosen]
        # Of a change's variance, as much depends on the rows before it as did.
        variance = max(self._variance[number] / max(self._variance_of_one(number), 1e-12), 1.0) * deviation**2
        drift = side * mean - self._statistics.allowance[chosen]
        height = self._statistics.limit[chosen] + _OVERSHOOT * deviation
        rises = drift > _NO_DRIFT
        if not rises.any():
            return NEVER
        drift, height = drift[rises], height[rises]
        times = height / drift
        if variance > 0.0:
            times += variance / (2.0 * drift**2) * np.expm1(-2.0 * drift * height / variance)
        return float(max(1.0, times.min()))

    def smallest(self, number: int, events: int) -> float:
        """The size of the smallest change (a rise) that is seen within so many events on average; `inf` where none is."""
        low, high = self._ends(number)
        if self.delay(number, high) > events:
            return NEVER
        for _ in range(_STEPS):
            middle = (low + high) / 2.0
            low, high = (middle, high) if self.delay(number, middle) > events else (low, middle)
        return high

    def sees(self, number: int, events: tuple[int, ...]) -> Sees:
        signal = self.every[number]
        change = _CHANGES.get(signal.kind, "share")
        before = 0.0 if change == "shift" else 1.0 if change == "factor" else self._before(number)
        return Sees(signal, change, before, {within: self.smallest(number, within) for within in events})

    def _before(self, number: int) -> float:
        """The share of an indicator, or the correlation of a pair, in the reference."""
        if self.every[number].kind == "pair":
            return float(np.clip(self._centre[number] / _product(1.0)[0], -0.99, 0.99))
        return float(self._laws[number].shares[-1])

    def _ends(self, number: int) -> tuple[float, float]:
        kind = self.every[number].kind
        if kind == "level":
            return 0.0, _FURTHEST[kind]
        return (1.0, _FURTHEST[kind]) if kind == "spread" else (self._before(number), 1.0)

    def _variance_of_one(self, number: int) -> float:
        return float(self._moved(number, self._ends(number)[0])[1] ** 2)

    def _moved(self, number: int, size: float) -> tuple[float, float]:
        """Mean and deviation of the signal's values behind a change of this size."""
        signal = self.every[number]
        if signal.kind == "pair":
            before, after = _product(self._before(number)), _product(size)
            return float(self._centre[number] + after[0] - before[0]), after[1]
        law = self._laws[number]
        if signal.kind == "level":
            return _of_level(law, size)
        if signal.kind == "spread":
            return _of_spread(law, size)
        deviation = float(law.values[-1] - law.values[0])
        share = float(law.shares[-1])
        return (size - share) * deviation, sqrt(max(size * (1.0 - size), 0.0)) * deviation


_SCORES: Floats = ndtri((np.arange(_GRID) + 0.5) / _GRID)


@lru_cache(maxsize=1)
def _products() -> tuple[Floats, Floats, Floats]:
    """Mean and deviation of the product of two normal scores, each clipped, by their correlation."""
    correlations = np.linspace(-1.0, 1.0, 201)
    first, other = np.meshgrid(*[ndtri((np.arange(101) + 0.5) / 101)] * 2)
    moments = []
    for correlation in correlations:
        second = correlation * first + sqrt(1.0 - correlation**2) * other
        product = first.clip(-CLIP, CLIP) * second.clip(-CLIP, CLIP)
        moments.append((product.mean(), product.std()))
    return correlations, *np.array(moments).T


def _product(correlation: float) -> tuple[float, float]:
    known, means, deviations = _products()
    return float(np.interp(correlation, known, means)), float(np.interp(correlation, known, deviations))


def _sorted(law: Law) -> Law:
    order = np.argsort(law.values)
    return Law(law.values[order], np.cumsum(law.shares[order]))


def _of_level(law: Law, shift: float) -> tuple[float, float]:
    """The law's own values (sorted, with the shares up to each) at the ranks that a normal value gets when it is moved."""
    places = law.shares.searchsorted(ndtr(_SCORES + shift))
    moved = law.values[np.minimum(places, len(law.values) - 1)]
    return float(moved.mean()), float(moved.std())


def _of_spread(law: Law, factor: float) -> tuple[float, float]:
    """As signals.py makes it of a normal score, which is stretched."""
    own, values = (np.minimum(((times * _SCORES) ** 2 - 1.0) / sqrt(2.0), CAP) for times in (1.0, factor))
    moved = np.minimum((values - own.mean()) / own.std(), float(law.values.max()))
    return float(moved.mean()), float(moved.std())
