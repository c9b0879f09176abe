"""Beyond what was simulated: the tail of a sample as a generalised Pareto law, and what looking more often adds.

An excess over a high threshold follows a generalised Pareto law nearly (Pickands 1975), P(excess > x) = (1 + shape x / scale)^(-1 / shape),
exp(-x / scale) for a shape of 0. Both parameters come from the first two L-moments (Hosking and Wallis 1987); of columns that are
measured alike they are drawn together as far as their differences are no more than chance (empirical Bayes). A shape below 0, a law
that ends somewhere, is taken as 0: to the safe side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, pi, sqrt

import numpy as np
from scipy.special import ndtr

from streaming.core.reference import Floats

_FROM = 0.7
_HEAVIEST = 0.5
_LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Tails:
    """Of each column: from where on its tail is taken, and the tail's law."""

    start: Floats
    scale: Floats
    shape: Floats

    def rarity(self, values: Floats) -> Floats:
        """How far out values (... x columns) are: an exponential law of mean 1 above 0, whatever the column's; linear below."""
        excess = (values - self.start) / self.scale
        shape = np.maximum(self.shape, 1e-6)
        grown = np.maximum(excess, 0.0)
        far: Floats = np.where(excess > 0.0, np.where(np.isinf(grown), np.inf, np.log1p(shape * grown) / shape), excess)
        return far

    def value(self, rarity: float) -> Floats:
        """The values that far out, one for each column."""
        shape = np.maximum(self.shape, 1e-6)
        values: Floats = self.start + self.scale * (np.expm1(shape * rarity) / shape if rarity > 0.0 else rarity)
        return values


def tails(maxima: Floats, alike: Sequence[object]) -> Tails:
    """From maxima (stretches x columns); columns of equal `alike` are measured alike."""
    finite = [own[np.isfinite(own)] for own in maxima.T]
    start = np.array([float(np.quantile(own, _FROM)) if len(own) else 0.0 for own in finite])
    scale, shape = np.empty(len(start)), np.zeros(len(start))
    known = np.zeros(len(start))
    for place in range(len(start)):
        excess = np.sort(finite[place][finite[place] > start[place]] - start[place])
        known[place] = len(excess)
        mean = float(excess.mean()) if len(excess) else max(start[place], _LEAST)
        scale[place] = mean
        if len(excess) > 1:
            second = mean - 2.0 * float(np.arange(len(excess) - 1, -1, -1) @ excess) / (len(excess) * (len(excess) - 1))
            shape[place] = 2.0 - mean / max(second, _LEAST * mean + _LEAST)
    for kind in set(alike):
        places = np.array([place for place, other in enumerate(alike) if other == kind])
        error = 1.0 / sqrt(max(1.0, float(known[places].mean())))
        together, unsure = _drawn_together(shape[places], error)
        # A law is heavier than exponential as far as that is more than chance: far out every bit of it counts.
        shape[places] = together - unsure
        relative = scale[places] / np.maximum(start[places], _LEAST)
        scale[places] = _drawn_together(relative, float(np.median(relative)) * error)[0] * np.maximum(start[places], _LEAST)
    shape = shape.clip(0.0, _HEAVIEST)
    # The mean of the excess is scale / (1 - shape).
    return Tails(start, np.maximum(scale * (1.0 - shape), _LEAST), shape)


def _drawn_together(values: Floats, error: float) -> tuple[Floats, float]:
    """Values that are known to an error each, nearer to their mean the less they differ, and the error that is left."""
    if len(values) < 2:
        return values, error
    between = max(0.0, float(values.var(ddof=1)) - error**2)
    own = between / (between + error**2)
    return values.mean() + own * (values - values.mean()), error * sqrt(own + (1.0 - own) / len(values))


@dataclass(frozen=True, slots=True)
class Tail:
    """Of one sample, sorted: its own quantiles as far as they are known, and an exponential law beyond.

    `scale` is the mean excess over the value that a fifth of the sample lies above, and one standard error more.
    """

    values: Floats
    start: float
    scale: float

    _SHARE = 0.2
    _KNOWN = 30

    @classmethod
    def of(cls, values: Floats) -> "Tail":
        ordered = np.sort(values)
        finite = ordered[np.isfinite(ordered)]
        if not len(finite):
            return cls(ordered, 0.0, 1.0)
        start = float(np.quantile(finite, 1.0 - cls._SHARE))
        excess = finite[finite > start] - start
        mean = float(excess.mean()) if len(excess) else max(abs(start), _LEAST)
        return cls(ordered, start, mean * (1.0 + 1.0 / sqrt(max(1, len(excess)))))

    def at(self, chance: float) -> float:
        """The value that is passed with this chance."""
        if chance * len(self.values) >= self._KNOWN or chance >= self._SHARE:
            return float(np.quantile(self.values, 1.0 - min(1.0, chance)))
        return self.start + self.scale * log(self._SHARE / chance)

    def chance(self, value: float) -> float:
        """With which chance this value is passed."""
        seen = float((self.values >= value).mean()) if len(self.values) else 0.0
        if seen * len(self.values) >= self._KNOWN or value <= self.start:
            return seen
        scale = self.scale / (1.0 + 1.0 / sqrt(max(1.0, self._SHARE * len(self.values))))
        return self._SHARE * exp(-(value - self.start) / scale)


def looks_between(rarity: float, size: int, coarse: int, fine: int) -> float:
    """How many times as often a statistic of a sliding window passes a level when it is looked at each `fine` rows, not each `coarse`.

    It moves like an Ornstein-Uhlenbeck process of correlation 1 - rows / size over short distances: the rate at a level of z standard
    deviations is proportional to nu(z sqrt(2 slide / size)) (Siegmund 1985). `rarity`: minus the logarithm of a look's chance.
    """
    if coarse == fine:
        return 1.0
    level = sqrt(2.0 * max(rarity, 0.5))
    return _nu(level * sqrt(2.0 * fine / size)) / _nu(level * sqrt(2.0 * coarse / size))


def _nu(x: float) -> float:
    """Siegmund's and Yakir's (2007) approximation."""
    if x < 1e-6:
        return 1.0
    density = exp(-x * x / 8.0) / sqrt(2.0 * pi)
    return float((2.0 / x) * (ndtr(x / 2.0) - 0.5) / ((x / 2.0) * ndtr(x / 2.0) + density))
