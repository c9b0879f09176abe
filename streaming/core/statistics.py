"""Evidently's drift tests on prepared arrays: the same numbers and the same choice of test, without pandas.

Formulas follow evidently 0.7.23 (`evidently.legacy.calculations.stattests`); NaN and infinities are dropped first, as
Evidently does. Every function takes the prepared reference column and the window's known values and returns a score:

| test          | score                                                              | drift when     | default |
|---------------|--------------------------------------------------------------------|----------------|---------|
| ks            | p of the two-sample Kolmogorov-Smirnov test (exact to 10,000 rows)  | score <= limit | 0.05    |
| chisquare     | p of Pearson's test, the reference's shares taken as exact          | score <  limit | 0.05    |
| z             | p of the pooled two-proportion test (first value against the rest)  | score <  limit | 0.05    |
| wasserstein   | W1 / max(standard deviation of the reference, 0.001)                | score >= limit | 0.1     |
| psi           | sum (p - q) ln(p / q) over bins of both samples together            | score >= limit | 0.1     |
| jensenshannon | the distance (square root, natural logarithm) over the same bins    | score >= limit | 0.1     |
"""

import warnings
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from math import lcm
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, ndtr, rel_entr
from scipy.stats import ks_2samp

from inference.versions import Kind
from streaming.core.reference import Column, Floats, NumericColumn, Values

Test = Literal["ks", "wasserstein", "psi", "jensenshannon", "chisquare", "z"]

DEFAULT_THRESHOLDS: dict[Test, float] = {"ks": 0.05, "chisquare": 0.05, "z": 0.05, "wasserstein": 0.1, "psi": 0.1, "jensenshannon": 0.1}
ALLOWED_KINDS: dict[Test, tuple[Kind, ...]] = {
    "ks": ("numeric",),
    "wasserstein": ("numeric",),
    "psi": ("numeric", "categorical"),
    "jensenshannon": ("numeric", "categorical"),
    "chisquare": ("categorical",),
    "z": ("categorical",),
}
P_VALUES: frozenset[Test] = frozenset({"ks", "chisquare", "z"})
_BINNED_FROM = 20
_FIRST = np.ones(1, dtype=bool)
FEW_VALUES = 5
_LARGE_REFERENCE = 1000


def choose(column: Column, known: Values) -> Test:
    """Evidently's own choice of test for this reference and window (both without missing values)."""
    values = _distinct(column, known)
    if isinstance(column, NumericColumn) and values > FEW_VALUES:
        return "ks" if column.n <= _LARGE_REFERENCE else "wasserstein"
    if column.n > _LARGE_REFERENCE:
        return "jensenshannon"
    return "chisquare" if values > 2 else "z"


def measure(test: Test, column: Column, known: Values) -> float:
    """The test's score of the window's known values; both samples must hold at least one value."""
    return _TESTS[test](column, known)


def over(test: Test, score: float, threshold: float) -> bool:
    """Whether a score drifts, on the side and with the equality that Evidently uses. A NaN never does."""
    if test == "ks":
        return score <= threshold
    return score < threshold if test in P_VALUES else score >= threshold


def ks(column: Column, known: Values) -> float:
    """The two-sided p-value; it depends only on both sizes and the statistic in steps of 1/lcm, so repeats cost a look-up."""
    return ks_p(_numeric(column).n, len(known), ks_height(column, known))


def ks_height(column: Column, known: Values) -> int:
    """The largest difference of both distributions, in steps of 1 / lcm of both sizes."""
    reference = _numeric(column).values
    window = np.sort(known)
    n, m = len(reference), len(window)
    step = lcm(n, m)
    # Between two different values of the window only the reference grows: the widest gaps are at and just before a value.
    # At a value that occurs several times the first of its kind counts before it and the last at it, so one of each suffices.
    places = _places(m)
    at = reference.searchsorted(window, "right") * (step // n) - (places + 1) * (step // m)
    before = reference.searchsorted(window, "left") * (step // n) - places * (step // m)
    last = np.empty(m, dtype=bool)
    np.not_equal(window[1:], window[:-1], out=last[:-1])
    last[-1] = True
    at, before = at[last], before[np.concatenate([_FIRST, last[:-1]])]
    return int(max(at.max(), -at.min(), before.max(), -before.min()))


@lru_cache(maxsize=100_000)
def ks_p(n: int, m: int, height: int) -> float:
    """The two-sided p-value of a statistic of height / lcm(n, m), asked of scipy with two samples built to have just that statistic."""
    step = lcm(n, m)
    first, second = _samples_with_height(n, m, height, step)
    with warnings.catch_warnings():
        # "Exact calculation unsuccessful, switching to asymp": that is what Evidently gets too.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(ks_2samp(first, second).pvalue)


def _samples_with_height(n: int, m: int, height: int, step: int) -> tuple[Floats, Floats]:
    # The smallest i / n - j / m that equals height / step, with i of the first sample and j of the second at or below 1;
    # the rest of both stands far above, where the two distributions grow together.
    for j in range(m + 1):
        rest = height + j * (step // m)
        if rest % (step // n) == 0 and (i := rest // (step // n)) <= n:
            break
    else:
        raise AssertionError(f"no statistic of two samples of {n} and {m} is {height}/{step}")
    return _step_sample(n, i), _step_sample(m, j)


def _step_sample(size: int, below: int) -> Floats:
    return np.concatenate([np.zeros(below), np.ones(size - below)])


@lru_cache(maxsize=64)
def _places(size: int) -> NDArray[np.int64]:
    return np.arange(size)


def wasserstein(column: Column, known: Values) -> float:
    """First Wasserstein distance in standard deviations of the reference (population, at least 0.001)."""
    reference = _numeric(column)
    of_reference, of_window, widths = quantile_cells(reference.n, len(known))
    gaps = np.abs(reference.values[of_reference] - np.sort(known)[of_window])
    distance = gaps.mean() if widths is None else (gaps * widths).sum()
    return float(distance) / max(reference.std, 0.001)


@lru_cache(maxsize=64)
def quantile_cells(first: int, second: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats | None]:
    """Where the quantile functions of two samples are both constant: the place in each sorted sample, and the cell's share of [0, 1]
    (None: all are equally wide). The first Wasserstein distance is the mean of the quantiles' differences."""
    step = lcm(first, second)
    edges = np.union1d(np.arange(first + 1) * (step // first), np.arange(second + 1) * (step // second))
    starts, widths = edges[:-1], np.diff(edges)
    even = bool((widths == widths[0]).all())
    return starts // (step // first), starts // (step // second), None if even else widths / step


def psi(column: Column, known: Values) -> float:
    """Population stability index; empty cells are filled as Evidently fills them, each sample on its own."""
    first, second = (_filled(shares) for shares in _shares(column, known))
    return float(np.sum((first - second) * np.log(first / second)))


def jensenshannon(column: Column, known: Values) -> float:
    """Jensen-Shannon distance; a sum that rounds below 0 counts as 0 (scipy gives NaN)."""
    first, second = _shares(column, known)
    first, second = first / first.sum(), second / second.sum()
    middle = (first + second) / 2.0
    divergence = float(rel_entr(first, middle).sum() + rel_entr(second, middle).sum())
    return float(np.sqrt(max(divergence, 0.0) / 2.0))


def chisquare(column: Column, known: Values) -> float:
    """Pearson's p with the reference's shares as the truth; a value never seen in the reference gives 0."""
    statistic, freedom = chisquare_statistic(column, known)
    return float(chdtrc(freedom, statistic)) if freedom else float("nan")


def chisquare_statistic(column: Column, known: Values) -> tuple[float, int]:
    """Pearson's statistic, infinite where a value was never seen in the reference, and its degrees of freedom."""
    reference, window = _counts(column, known)
    if len(reference) < 2:
        return 0.0, 0
    expected = reference * (len(known) / column.n)
    with np.errstate(divide="ignore"):
        return float(np.sum((window - expected) ** 2 / expected)), len(reference) - 1


def z(column: Column, known: Values) -> float:
    """Two-sided p for the share of the first value (in sorted order); 1 when both samples hold the same single value."""
    return float(2 * (1 - ndtr(z_statistic(column, known))))


def z_statistic(column: Column, known: Values) -> float:
    """The difference of both shares of the first value in standard errors; 0 when both samples hold the same single value."""
    reference, window = _counts(column, known)
    if len(reference) < 2:
        return 0.0
    n, m = column.n, len(known)
    p, q = (n - reference[0]) / n, (m - window[0]) / m
    pooled = (p * n + q * m) / (n + m)
    return float(abs((p - q) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))))


def _numeric(column: Column) -> NumericColumn:
    if not isinstance(column, NumericColumn):
        raise TypeError(f"{column.name} is categorical; this test takes numbers")
    return column


def _distinct(column: Column, known: Values) -> int:
    if isinstance(column, NumericColumn):
        # Enough to know "more than five": the window's own values are only looked through when the reference has few.
        return len(column.distinct) if len(column.distinct) > FEW_VALUES else len(np.union1d(column.distinct, known))
    return len(column.counts.keys() | set(known))


def _counts(column: Column, known: Values) -> tuple[Floats, Floats]:
    """How often each value occurs in the reference and in the window, values in sorted order."""
    if isinstance(column, NumericColumn):
        window = np.sort(known)
        keys: Any = np.union1d(column.distinct, window)
        return _occurrences(column.values, keys), _occurrences(window, keys)
    current = Counter(known)
    names = sorted(column.counts.keys() | current.keys())
    return np.array([column.counts.get(name, 0) for name in names], dtype=float), np.array([current[name] for name in names], dtype=float)


def _occurrences(ordered: Floats, keys: Floats) -> Floats:
    found: NDArray[np.int64] = np.searchsorted(ordered, keys, side="right") - np.searchsorted(ordered, keys, side="left")
    return found.astype(np.float64)


def _shares(column: Column, known: Values) -> tuple[Floats, Floats]:
    """Shares per cell: Sturges' bins over both samples together for more than 20 distinct reference values, else per value."""
    if isinstance(column, NumericColumn) and len(column.distinct) > _BINNED_FROM:
        window = np.sort(known)
        edges = _sturges(column.values, window)
        return _in_bins(column.values, edges) / column.n, _in_bins(window, edges) / len(window)
    reference, window = _counts(column, known)
    return reference / column.n, window / len(known)


def _sturges(reference: Floats, window: Floats) -> Floats:
    """The edges that numpy gives bins of equal width over both samples, which are sorted."""
    low, high = min(float(reference[0]), float(window[0])), max(float(reference[-1]), float(window[-1]))
    if low == high:
        low, high = low - 0.5, high + 0.5
        bins = 1
    else:
        width = (high - low) / (np.log2(len(reference) + len(window)) + 1.0)
        bins = int(np.ceil((high - low) / width)) if width else 1
    # numpy.linspace, to the bit, at a fifth of its cost.
    edges: NDArray[Any] = _places(bins + 1) * ((high - low) / bins) + low
    edges[-1] = high
    return edges


def _in_bins(ordered: Floats, edges: Floats) -> NDArray[np.int64]:
    """How many values stand in each bin; the last bin holds its upper edge too, as `numpy.histogram` has it."""
    ends = ordered.searchsorted(edges, "left")
    ends[-1] = ordered.searchsorted(edges[-1], "right")
    counts: NDArray[np.int64] = ends[1:] - ends[:-1]
    return counts


def _filled(shares: Floats) -> Floats:
    empty = shares == 0
    if not empty.any():
        return shares
    smallest = shares[~empty].min()
    return np.where(empty, smallest / 10**6 if smallest <= 0.0001 else 0.0001, shares)


_TESTS: dict[Test, Callable[[Column, Values], float]] = {
    "ks": ks,
    "wasserstein": wasserstein,
    "psi": psi,
    "jensenshannon": jensenshannon,
    "chisquare": chisquare,
    "z": z,
}
