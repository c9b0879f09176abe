"""How the rows of a time-ordered reference depend on each other: cycles, long-run variance, periods, block lengths, drift within.

All of it is told from signals (rows x signals, as `Signals.of` gives them), a bounded view of each column whatever its scale.
"""

from dataclasses import dataclass
from math import log, log10, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft

from streaming.core.reference import Floats

_BANDWIDTH_OF_NOISE = 2.0
_ROWS_FOR_CYCLES = 200
_ROWS_FOR_VARIANCE = 8
_NEIGHBOURS = 32
_LINE_BY_CHANCE = 0.01
_TOGETHER = 32
_FEWEST_TURNS = 3
_MOST_PERIODS = 2
_HARMONICS = 8
_CLEARLY = 3.0
_REFINEMENTS = 3
_TRIED = 11
_TOLD_BY = 8
_CONSTANT = 1e-9
_SURELY = 8.0
_FEWEST_BLOCKS = 25


def cycles(values: Floats) -> Floats:
    """The periodic part of each signal: the lines of its spectrum, ordinates too far above their neighbours' median for noise."""
    rows, count = values.shape
    found = np.zeros_like(values)
    if rows < _ROWS_FOR_CYCLES:
        return found
    for start in range(0, count, _TOGETHER):
        spectrum, lines = _lines(values[:, start : start + _TOGETHER], rows * count, 1.0)
        if lines.any():
            found[:, start : start + _TOGETHER] = irfft(np.where(lines, spectrum, 0.0), rows, axis=0)
    return found


def _lines(values: Floats, ordinates: int, times: float) -> tuple[NDArray[np.complex128], NDArray[np.bool_]]:
    """The spectrum of these signals, and which of its ordinates are lines: `times` as high as one of so many gets by chance."""
    spectrum = rfft(values, axis=0)
    power = np.abs(spectrum) ** 2
    power[0] = 0.0
    surely = times * log(ordinates / _LINE_BY_CHANCE) / log(2.0)
    return spectrum, power > surely * np.maximum(_floor(power), 1e-9 * len(values))


def _floor(power: Floats) -> Floats:
    """The median of each ordinate's neighbourhood."""
    whole = len(power) // _NEIGHBOURS * _NEIGHBOURS
    medians = np.median(power[:whole].reshape(-1, _NEIGHBOURS, power.shape[1]), axis=1)
    floor = np.repeat(medians, _NEIGHBOURS, axis=0)
    return np.concatenate([floor, np.repeat(medians[-1:], len(power) - whole, axis=0)])


@dataclass(frozen=True, slots=True)
class LongRun:
    """Of each signal: long-run variance / variance (at least 1; 1 for a constant one), the kernel's bandwidth in rows (0 for a constant
    one), and what the choice of a block's length needs: the sum of |lag| x autocorrelation under the same kernel, and the lagged
    autocorrelations themselves, as far as the bandwidth."""

    ratio: Floats
    bandwidth: Floats
    slope: Floats
    correlations: tuple[Floats, ...]

    def by_blocks(self, length: int) -> Floats:
        """Long-run variance / variance that rows drawn in blocks of this length have (Kuensch 1989); at least 1."""
        ratio = np.ones(len(self.ratio))
        for place, correlation in enumerate(self.correlations):
            lags = np.arange(1, min(length, len(correlation) + 1))
            ratio[place] = max(1.0, 1.0 + 2.0 * float((1.0 - lags / length) @ correlation[: len(lags)]))
        return ratio


def long_run(values: Floats) -> LongRun:
    """With a flat-top kernel over the autocorrelation, its bandwidth as Politis (2003) chooses it."""
    rows, count = values.shape
    ratio, bandwidth, slope = np.ones(count), np.zeros(count), np.zeros(count)
    correlations: list[Floats] = [np.zeros(0)] * count
    if rows < _ROWS_FOR_VARIANCE:
        return LongRun(ratio, bandwidth, slope, tuple(correlations))
    length = next_fast_len(2 * rows)
    lags = max(4, rows // 4)
    noise = _BANDWIDTH_OF_NOISE * sqrt(log10(rows) / rows)
    quiet = max(5, int(sqrt(log10(rows))))
    for start in range(0, count, _TOGETHER):
        part = values[:, start : start + _TOGETHER]
        spectrum = rfft(part - part.mean(axis=0), length, axis=0)
        moments = irfft(spectrum * spectrum.conj(), length, axis=0)[:lags]
        for place in range(part.shape[1]):
            if moments[0, place] <= _CONSTANT * rows:
                continue
            correlation = moments[1:, place] / moments[0, place]
            calm = np.convolve(np.abs(correlation) < noise, np.ones(quiet), "valid") == quiet
            first = int(calm.argmax()) if calm.any() else len(calm)
            width = min(2 * max(first, 1), len(correlation))
            taper = np.minimum(1.0, 2.0 * (1.0 - np.arange(1, width + 1) / width)) * correlation[:width]
            ratio[start + place] = max(1.0, 1.0 + 2.0 * float(taper.sum()))
            bandwidth[start + place] = width
            slope[start + place] = 2.0 * float(np.arange(1, width + 1) @ taper)
            correlations[start + place] = taper
    return LongRun(ratio, bandwidth, slope, tuple(correlations))


def block_length(known: LongRun, rows: int) -> int:
    """Rows of a block, the longest that any signal wants: (3 G^2 / 2 v^2)^(1/3) rows^(1/3), with v its long-run variance and G the sum
    of |lag| x autocorrelation (Politis and White 2004, Patton et al. 2009); 1 where rows don't depend on each other.

    At most a 25th of the rows: of fewer blocks there would be too few different ones for the columns that do not depend so long."""
    wanted = (1.5 * known.slope**2 / known.ratio**2 * rows) ** (1.0 / 3.0)
    dependent = wanted[known.ratio > 1.0 + _SURELY / sqrt(rows)]
    return int(np.clip(np.ceil(dependent.max(initial=1.0)), 1, max(1, rows // _FEWEST_BLOCKS)))


@dataclass(frozen=True, slots=True)
class Periodic:
    """The lengths in rows of the cycles in the signals, two at most, the strongest first; and the signals without them."""

    periods: tuple[float, ...]
    rest: Floats


def periodic(values: Floats) -> Periodic:
    """Each cycle is a clear line of the spectrum, its length told to a fraction of an ordinate, and its harmonics.

    What turns fewer than three times in these rows is no cycle that is known.
    """
    rows = len(values)
    found: tuple[float, ...] = ()
    rest = values - values.mean(axis=0)
    while rows >= _ROWS_FOR_CYCLES and len(found) < _MOST_PERIODS:
        peak = _clearest(rest)
        if not peak:
            break
        found = (*found, rows / _refined(rest, peak))
        rest = _without(rest, found[-1])
    return Periodic(found, rest)


def _clearest(values: Floats) -> int:
    """The ordinate of the highest clear line of any signal; 0 for none."""
    rows, count = values.shape
    highest, peak = 0.0, 0
    for start in range(0, count, _TOGETHER):
        spectrum, lines = _lines(values[:, start : start + _TOGETHER], rows * count, _CLEARLY)
        power = np.where(lines, np.abs(spectrum) ** 2, 0.0).max(axis=1)
        power[:_FEWEST_TURNS] = 0.0
        if power.max() > highest:
            highest, peak = float(power.max()), int(power.argmax())
    return peak


def _refined(values: Floats, peak: int) -> float:
    """Where between two ordinates the line is at its highest, in turns, over the signals in which it is clearest."""
    angles = -2j * np.pi * np.arange(len(values)) / len(values)
    strength = np.abs(np.exp(peak * angles) @ values)
    clearest = values[:, np.argsort(-strength)[:_TOLD_BY]]
    turns, width = float(peak), 1.0
    for _ in range(_REFINEMENTS):
        tried = turns + width * np.linspace(-1.0, 1.0, _TRIED)
        heights = [float((np.abs(np.exp(one * angles) @ clearest) ** 2).sum()) for one in tried]
        turns, width = float(tried[int(np.argmax(heights))]), width / _TRIED * 2.0
    return turns


def _without(values: Floats, period: float) -> Floats:
    """What a cycle of this length and its harmonics leave of the signals."""
    angles = 2.0 * np.pi * np.arange(len(values)) / period
    harmonics = range(1, 1 + int(min(_HARMONICS, period / 2.0)))
    waves = np.column_stack([wave(times * angles) for times in harmonics for wave in (np.cos, np.sin)])
    fitted, *_ = np.linalg.lstsq(waves, values, rcond=None)
    rest: Floats = values - waves @ fitted
    return rest


@dataclass(frozen=True, slots=True)
class Halves:
    """How much each signal's mean differs between the first and the second half of its rows: in standard errors (0 for a constant one),
    and of how many degrees of freedom those are (Student's t)."""

    apart: Floats
    freedom: Floats


def halves(values: Floats) -> Halves:
    """From signals, rows x signals, without their cycles."""
    half = len(values) // 2
    if half < _ROWS_FOR_VARIANCE:
        return Halves(np.zeros(values.shape[1]), np.ones(values.shape[1]))
    parts = values[:half], values[half : 2 * half]
    # Around a line through each half: the change itself must not count as noise.
    noise = [long_run(_straightened(part)) for part in parts]
    variance = sum(_straightened(part).var(axis=0) * told.ratio for part, told in zip(parts, noise, strict=True))
    error = np.sqrt(variance / half)
    moved = np.abs(parts[1].mean(axis=0) - parts[0].mean(axis=0))
    apart = np.divide(moved, error, out=np.zeros_like(moved), where=error > _CONSTANT)
    bandwidth = np.maximum(noise[0].bandwidth, noise[1].bandwidth)
    # The relative variance of a long-run variance is 8/3 bandwidth / rows, that of a chi-square's 2 / degrees.
    return Halves(apart, np.maximum(2.0 * half / np.maximum(4.0 / 3.0 * bandwidth, 1.0), 1.0))


def _straightened(values: Floats) -> Floats:
    places = np.arange(len(values)) - (len(values) - 1) / 2.0
    straight: Floats = values - values.mean(axis=0) - np.outer(places, places @ values / (places @ places))
    return straight
