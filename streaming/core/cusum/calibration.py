"""Limits for the CUSUM of ranks: in closed form from a budget of false alarms and a reference, without simulation.

A statistic is a signal, a side (rise or fall) and an allowance k. Its limit is

    h = (b(k, A) - 1.166) * (2 k / theta) * v * c

- A = events per false alarm of this statistic alone, after the budget is shared between kinds of signals (`_SHARES`), their
  signals and sides, and the allowances (`_ALLOWANCES`). The statistics of one signal alarm together so often that three count as
  `_TOGETHER` (measured).
- b solves ARL(b) = (exp(2 k b) - 2 k b - 1) / (2 k^2) = A (Siegmund 1985: a normal CUSUM, 1.166 = its overshoot).
- theta > 0 is the signal's own exponent, E exp(theta (x - k)) = 1 (Cramer, Lundberg; Asmussen 2003): 2 k for a normal signal; it
  takes skewness, rare categories and heavy tails in one stroke.
- v = long-run variance / variance of the signal over the time-ordered reference (flat-top kernel, bandwidth as Politis 2003), at
  least 1: 19 for an autoregression of 0.9.
- c = what it costs that the variance is estimated from so many rows, and the kernel's long-run variance all the more.

What the reference's mean can't be known better than, N(0, v / rows), is paid for by a larger allowance: k + h / rows cancels its
expected effect on the rate of false alarms just so.

A signal with a cycle (lines in its spectrum) gets a part of k for the cycle, the rest for the noise around it: its limit is the
height to which the cycle alone takes the recursion, and the closed form's for the noise, the best of three parts.

A reference in which a statistic runs up higher than all this lets it is one of another kind, with regimes for example. There the
limit is that excursion, extended to the budget's length by the normal law of a walk as long as the excursion took.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from streaming.core import dependence
from streaming.core.cusum.recursion import blocks, walk
from streaming.core.cusum.signals import Kind, Law, Signal, Signals
from streaming.core.reference import Codes, Floats

_ALLOWANCES = (0.125, 0.25, 0.5)
_PARTS = (0.2, 0.5, 0.3)
"""The part of a signal's budget that each allowance has."""
_PAIR_ALLOWANCES = (0.25, 0.5)
_PAIR_PARTS = (0.5, 0.5)
_SHARES: dict[Kind, float] = {"level": 0.45, "spread": 0.15, "category": 0.07, "rare": 0.03, "unseen": 0.1, "missing": 0.05, "pair": 0.15}
_TOGETHER = 2.2 / 3.0
_SAFETY = 2.0
_OVERSHOOT = 1.166
_ATOMS = 256
_DEPENDENT = 1.1
_STEEPEST = 50.0
_LOWEST = 1.0
_UNLIKELY = 20.0
_LEAST_KNOWN = 3.0
_MOST_VALUES = 8_000_000
_CYCLE_PARTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Statistics:
    """All statistics of a reference, each an entry of every array: which signal, +1 for a rise or -1 for a fall, what is taken from
    each step, and the limit. The arrays of pairs are in units of the product."""

    signals: Signals
    signal: NDArray[np.int64]
    side: Floats
    allowance: Floats
    limit: Floats

    def steps(self, values: Floats) -> Floats:
        """What each statistic takes of each row, rows x statistics, from the signals of `Signals.of`."""
        steps = values.take(self.signal, axis=1)
        steps *= self.side
        steps -= self.allowance
        return steps

    def part(self, places: Sequence[int]) -> "Statistics":
        """Those at these places alone."""
        chosen = np.array(places, dtype=np.int64)
        return Statistics(self.signals, self.signal[chosen], self.side[chosen], self.allowance[chosen], self.limit[chosen])


def calibrate(signals: Signals, codes: Codes, events: float) -> Statistics:
    """Limits that give one false alarm in `events` rows; `codes` (columns x rows) is the reference in time order.

    Of a long reference the newest rows count, so that rows x signals are 8 million at most (64 MB, and several times as much meanwhile).
    """
    values = signals.of(codes[:, -max(1, _MOST_VALUES // (len(signals.singles) + len(signals.pairs))) :])
    rows, singles = len(values), len(signals.singles)
    every = [*signals.singles, *signals.pairs]
    centre, scale = np.zeros(len(every)), np.ones(len(every))
    if signals.pairs:
        products = values[:, singles:]
        # As if three rows more had been had in which the two do not depend on each other: what never occurred may yet.
        apart = min(0.5, 3.0 / rows)
        alone = signals.alone(values)
        centre[singles:] = (1.0 - apart) * products.mean(axis=0)
        second = (1.0 - apart) * (products**2).mean(axis=0) + apart * alone
        scale[singles:] = np.sqrt(np.maximum(second - centre[singles:] ** 2, 1e-9))
        values = (values - centre) / scale
    cycles = dependence.cycles(values)
    told = dependence.long_run(values - cycles)
    variance, bandwidth = told.ratio, told.bandwidth
    signal, side, allowance, per_alarm = _statistics(every, events)
    laws = [*signals.laws, *(_histogram(values[:, number]) for number in range(singles, len(every)))]
    for number in range(singles, len(every)):
        ends = (np.array([-1.0, 1.0]) * sqrt(alone[number - singles]) - centre[number]) / scale[number]
        law = laws[number]
        laws[number] = Law(np.append(law.values, ends), np.append(law.shares * (1.0 - apart), [apart / 2.0] * 2))
    kurtosis = np.zeros(len(every))
    kurtosis[singles:] = [float(law.shares @ law.values**4) - 1.0 for law in laws[singles:]]
    known = _Known(laws, variance, bandwidth, kurtosis, rows)
    theta = _exponents(laws, signal, side, allowance)
    limit = known.limits(signal, side, allowance, per_alarm, theta)
    cyclic = np.flatnonzero(cycles.any(axis=0).take(signal))
    if len(cyclic):
        limit[cyclic] = _with_cycles(known, cycles, signal[cyclic], side[cyclic], allowance[cyclic], per_alarm[cyclic])
    # What happened in the reference itself.
    taken = allowance + limit / rows
    highest, lasted = _excursions(Statistics(signals, signal, side, taken, limit), values)
    likely = known.limits(signal, side, allowance, np.full(len(signal), _UNLIKELY * rows * len(signal)), theta)
    extended = _extended(highest, lasted, variance[signal], rows, per_alarm)
    limit = np.maximum(limit, np.where(highest > likely, extended, highest))
    return Statistics(signals, signal, side, taken * scale[signal] + side * centre[signal], limit * scale[signal])


@dataclass(frozen=True, slots=True)
class _Known:
    """What the reference tells of each signal: its law, long-run variance / variance, the bandwidth that took, and from how many rows.

    `kurtosis` is the excess that makes the variance of a pair uncertain; 0 for signals of one column, whose law is one of ranks.
    """

    laws: list[Law]
    variance: Floats
    bandwidth: Floats
    kurtosis: Floats
    rows: int

    def limits(self, signal: NDArray[np.int64], side: Floats, allowance: Floats, per_alarm: Floats, theta: Floats | None = None) -> Floats:
        """The closed form, in standard deviations."""
        theta = _exponents(self.laws, signal, side, allowance) if theta is None else theta
        exponent = 2.0 * allowance * _siegmund(allowance, per_alarm)
        stretch = np.minimum(2.0 * allowance / theta, _STEEPEST)
        spread = self.variance
        relative = np.where(spread > _DEPENDENT, 4.0 / 3.0 * 2.0 * self.bandwidth, 0.0) + self.kurtosis * spread
        unsure = _unsure(exponent, relative[signal] / self.rows)
        limits: Floats = np.maximum((exponent / (2.0 * allowance) - _OVERSHOOT) * stretch * spread[signal] * unsure, _LOWEST)
        return limits


def _with_cycles(known: _Known, cycles: Floats, signal: NDArray[np.int64], side: Floats, allowance: Floats, per_alarm: Floats) -> Floats:
    """Limits of statistics whose signals have a cycle: a part of the allowance is for the cycle, the rest for the noise around it."""
    best = np.full(len(signal), np.inf)
    for part in _CYCLE_PARTS:
        highest = np.zeros(len(signal))
        stretches = (cycles[start:stop].take(signal, axis=1) * side - part * allowance for start, stop in blocks(len(cycles)))
        for reached in walk(stretches, len(signal)):
            highest = np.maximum(highest, reached.max(axis=0))
        best = np.minimum(best, highest + known.limits(signal, side, (1.0 - part) * allowance, per_alarm))
    return best


def _statistics(every: list[Signal], events: float) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
    """Signal, side, allowance and events per false alarm of each statistic."""
    sides = {kind: sum(1 + signal.both for signal in every if signal.kind == kind) for kind in _SHARES}
    shared = sum(share for kind, share in _SHARES.items() if sides[kind])
    made = []
    for number, signal in enumerate(every):
        allowances, parts = (_PAIR_ALLOWANCES, _PAIR_PARTS) if signal.kind == "pair" else (_ALLOWANCES, _PARTS)
        of_one = _SHARES[signal.kind] / shared / sides[signal.kind]
        for allowance, part in zip(allowances, parts, strict=True):
            per_alarm = events * _SAFETY * _TOGETHER / (of_one * part)
            made += [(number, side, allowance, per_alarm) for side in ((1.0, -1.0) if signal.both else (1.0,))]
    table = np.array(made, dtype=np.float64).T
    return table[0].astype(np.int64), table[1], table[2], table[3]


def _siegmund(allowance: Floats, per_alarm: Floats | float) -> Floats:
    """b of (exp(2 k b) - 2 k b - 1) / (2 k^2) = A, by Newton's method on the exponent."""
    wanted = 2.0 * allowance**2 * per_alarm
    exponent = np.log(wanted + 1.0)
    for _ in range(50):
        exponent -= (np.exp(exponent) - exponent - 1.0 - wanted) / (np.exp(exponent) - 1.0)
    b: Floats = exponent / (2.0 * allowance)
    return b


def _histogram(values: Floats) -> Law:
    """A sample as a law of few values."""
    means, counts = _binned(values, None)
    return Law(means, counts / len(values))


def _few(law: Law) -> Law:
    return law if len(law.values) <= _ATOMS else Law(*_binned(law.values, law.shares))


def _binned(values: Floats, shares: Floats | None) -> tuple[Floats, Floats]:
    """The mean of each bin that holds any, and how much it holds: values, or their shares."""
    held, edges = np.histogram(values, bins=_ATOMS, weights=shares)
    sums, _ = np.histogram(values, bins=edges, weights=values if shares is None else values * shares)
    some = held > 0
    return sums[some] / held[some], held[some]


def _exponents(laws: list[Law], signal: NDArray[np.int64], side: Floats, allowance: Floats) -> Floats:
    """theta > 0 with E exp(theta (x - k)) = 1 of each statistic; a large number where the signal cannot exceed k."""
    few = [_few(law) for law in laws]
    values = np.zeros((len(laws), _ATOMS))
    shares = np.zeros((len(laws), _ATOMS))
    for number, law in enumerate(few):
        values[number, : len(law.values)] = law.values
        shares[number, : len(law.shares)] = law.shares
    steps = values[signal] * side[:, None] - allowance[:, None]
    weights = shares[signal]
    highest = np.where(weights > 0, steps, -np.inf).max(axis=1)
    # Between these two: E exp is below 1 at the one and above 1 at the other.
    low, high = np.zeros(len(signal)), np.full(len(signal), 64.0)
    for _ in range(48):
        middle = (low + high) / 2.0
        # In logarithms: a rare value far out would overflow.
        grown = steps * middle[:, None]
        top = grown.max(axis=1, initial=0.0, where=weights > 0)
        mean = np.log((weights * np.exp(grown - top[:, None])).sum(axis=1)) + top
        over = mean > 0.0
        high = np.where(over, middle, high)
        low = np.where(over, low, middle)
    theta: Floats = np.where(highest > 0, high, 64.0)
    return theta


def _unsure(exponent: Floats, relative: Floats) -> Floats:
    """By how much a limit grows because its variance is known with this relative variance only.

    The rate of false alarms is exp(-a / g) where the variance is g times what was estimated. With a Gamma law of 1/g (mean 1, the
    relative variance r) it is (1 + a r)^(-1/r) on average: the a that gives the wanted exponent x again is expm1(x r) / r.
    """
    bounded = np.clip(exponent * relative, 1e-9, _LEAST_KNOWN)
    grown: Floats = np.expm1(bounded) / bounded
    return grown


def _excursions(statistics: Statistics, values: Floats) -> tuple[Floats, Floats]:
    """How high each statistic gets over the reference, and how many rows it took from 0 to there."""
    count, row = len(statistics.signal), 0
    highest, left, lasted = np.zeros(count), np.zeros(count), np.ones(count)
    for stretch in walk((statistics.steps(values[start:stop]) for start, stop in blocks(len(values))), count):
        for reached in stretch:
            row += 1
            higher = reached > highest
            if higher.any():
                lasted[higher] = row - left[higher]
                highest[higher] = reached[higher]
            left[reached == 0.0] = row
    return highest, lasted


def _extended(highest: Floats, lasted: Floats, spread: Floats, rows: int, per_alarm: Floats) -> Floats:
    """The excursion that is as rare in `per_alarm` rows as the highest was in these rows."""
    seen = np.minimum(0.5, lasted / rows)
    wanted = np.minimum(seen, lasted / per_alarm)
    extended: Floats = highest + (ndtri(seen) - ndtri(wanted)) * np.sqrt(lasted * spread)
    return extended
