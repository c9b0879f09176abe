"""Evidence: what a window test has found, on a scale on which chance falls off about exponentially, whatever the test.

| test          | evidence                                | Evidently's score of it                |
|---------------|-----------------------------------------|----------------------------------------|
| ks            | D^2 n m / (n + m)                       | the p-value of that D                  |
| wasserstein   | score^2                                 | its root                               |
| jensenshannon | score^2                                 | its root                               |
| psi           | score                                   | itself                                 |
| chisquare     | Pearson's statistic                     | its p-value                            |
| z             | z^2                                     | its p-value                            |

Unlike a p-value it never underflows: limits for rows that depend on each other lie where p-values are 0.
"""

from collections.abc import Mapping, Sequence
from math import ceil, inf, lcm, nan, sqrt

import numpy as np
from scipy.special import chdtrc, chdtri, ndtr, ndtri, rel_entr

from streaming.core import statistics
from streaming.core.bootstrap.stretches import Places
from streaming.core.columnwise import ColumnwiseKs, ColumnwiseWasserstein
from streaming.core.reference import CategoricalColumn, Codes, Column, Floats, NumericColumn, Values
from streaming.core.statistics import Test

_BINNED_FROM = 20
_NUMERIC: tuple[Test, ...] = ("ks", "wasserstein")


def fixed_test(test: Test | str, column: Column) -> Test:
    """The test of this column: Evidently's own choice ("auto") from the reference alone, so that it is the same for every window."""
    if test == "auto":
        return statistics.choose(column, column.distinct[:0] if isinstance(column, NumericColumn) else np.array([], dtype=object))
    return next(known for known in statistics.DEFAULT_THRESHOLDS if known == test)


def score_of(test: Test, column: Column, evidence: float, size: int) -> float:
    """Evidently's score of this evidence for a full window."""
    if test == "ks":
        n = column.n
        # Of the heights that two samples can have, those in steps of 1 / n.
        above = ceil(sqrt(evidence * (n + size) / size / n) * n)
        return statistics.ks_p(n, size, above * (lcm(n, size) // n)) if above <= n else 0.0
    if test == "chisquare":
        return float(chdtrc(_different(column) - 1, evidence))
    if test == "z":
        return float(2.0 * (1.0 - ndtr(sqrt(evidence))))
    return evidence if test == "psi" else sqrt(evidence)


def evidence_at(test: Test, column: Column, score: float, size: int) -> float:
    """The evidence of a full window with this score of Evidently's; `inf` where no window has it."""
    if test == "ks":
        n = column.n
        # The smallest height whose p is no larger.
        low, high = 0, n + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if statistics.ks_p(n, size, middle * (lcm(n, size) // n)) <= score else (middle, high)
        return (high / n) ** 2 * n * size / (n + size) if high <= n else inf
    if test in ("chisquare", "z"):
        if not 0.0 < score < 1.0:
            return inf if score <= 0.0 else 0.0
        return float(chdtri(_different(column) - 1, score)) if test == "chisquare" else float(ndtri(score / 2.0)) ** 2
    return score if test == "psi" else score**2


def _different(column: Column) -> int:
    return len(column.distinct) if isinstance(column, NumericColumn) else len(column.counts)


def measured(test: Test, column: Column, known: Values) -> float:
    """The evidence of a window's known values (both samples must hold at least one); NaN where the test is not defined on them."""
    if test == "ks":
        return of_height(column.n, len(known), statistics.ks_height(column, known))
    if test == "chisquare":
        statistic, freedom = statistics.chisquare_statistic(column, known)
        return statistic if freedom else nan
    if test == "z":
        return statistics.z_statistic(column, known) ** 2
    return of_score(test, statistics.measure(test, column, known))


def of_height(n: int, m: int, height: int) -> float:
    """The evidence of a Kolmogorov-Smirnov statistic of height / lcm of both sizes."""
    return (height / lcm(n, m)) ** 2 * n * m / (n + m)


def of_score(test: Test, score: float) -> float:
    """The evidence of a score that is a distance."""
    return score if test == "psi" else score**2


class Measuring:
    """Evidence of every column in many windows of drawn rows, against a reference that is drawn anew, or the one there is.

    `cells`, an array for each column, is the sample that rows are drawn from (see `cells_of`). A number that is missing is filled with
    the one before it, and counts as evidence of so many rows fewer: the windows are then all of one size, and quickly measured.
    """

    def __init__(self, columns: Sequence[Column], tests: Sequence[Test], cells: Sequence[Values]) -> None:
        self._columns, self._tests = columns, tests
        self._codes: dict[int, Codes] = {}
        self._numbers: dict[int, Floats] = {}
        self._lost = np.ones(len(columns))
        for place, (column, test, own) in enumerate(zip(columns, tests, cells, strict=True)):
            if isinstance(column, CategoricalColumn):
                self._codes[place] = own
                continue
            clipped = own if column.ends is None else own.clip(*column.ends)
            if len(column.distinct) <= _BINNED_FROM and test not in _NUMERIC:
                self._codes[place] = column.codes(np.where(np.isfinite(own), clipped, np.nan))
            else:
                self._numbers[place] = _filled(clipped)
                if test in ("wasserstein", "jensenshannon", "psi"):
                    self._lost[place] = len(own) / max(1, int(np.isfinite(own).sum()))
        self._ranked = {place: np.unique(own, return_inverse=True) for place, own in self._numbers.items()}

    def evidence(self, reference: Places | None, rows: Places, size: int, ends: Sequence[int]) -> Floats:
        """Of windows of `size` drawn rows that end at these (row numbers among the drawn, exclusive) x columns.

        `reference`: the rows that stand for the reference; None is the reference there is.
        """
        found = np.zeros((len(ends), len(self._columns)))
        for place, codes in self._codes.items():
            found[:, place] = self._of_counts(place, codes, reference, rows, size, ends)
        for test in dict.fromkeys(self._tests[place] for place in self._numbers):
            places = [place for place in self._numbers if self._tests[place] == test]
            if test == "ks" and reference is not None:
                found[:, places] = self._by_ranks(places, reference, rows, size, ends)
                continue
            made = {place: self._made(place, reference) for place in places}
            for group in _by_size(made):
                columns, drawn = [made[place] for place in group], np.array([self._numbers[place][rows] for place in group])
                found[:, group] = _by_values(test, columns, drawn, size, ends)
        scores: Floats = found * self._lost
        return scores

    def _made(self, place: int, reference: Places | None) -> NumericColumn:
        """The column, with these rows of the sample as its reference."""
        column = self._columns[place]
        if not isinstance(column, NumericColumn):
            raise TypeError(f"{column.name} is categorical; this test takes numbers")
        if reference is None:
            return column
        distinct, ranks = self._ranked[place]
        counts = np.bincount(ranks[reference], minlength=len(distinct))
        values, some = np.repeat(distinct, counts), counts > 0
        below = np.concatenate([[0], np.cumsum(counts[some])])
        return NumericColumn(column.name, values, len(values), float(np.std(values)), distinct[some], below)

    def _by_ranks(self, places: Sequence[int], reference: Places, rows: Places, size: int, ends: Sequence[int]) -> Floats:
        """Kolmogorov and Smirnov among the sample's own values (as `ColumnwiseKs`): how many of the reference lie below each is a table."""
        ranks = [self._ranked[place][1] for place in places]
        known = [np.bincount(own[reference], minlength=len(self._ranked[place][0])) for own, place in zip(ranks, places, strict=True)]
        below = np.concatenate([np.concatenate([[0.0], np.cumsum(counts)]) for counts in known]) / len(reference)
        starts = np.cumsum([0, *(len(counts) + 1 for counts in known[:-1])])
        drawn = np.array([own[rows] + start for own, start in zip(ranks, starts.tolist(), strict=True)], dtype=np.int32)
        of_window = np.arange(size + 1) / size
        found = np.empty((len(ends), len(places)))
        for look, end in enumerate(ends):
            window = np.sort(drawn[:, end - size : end], axis=1)
            above = (of_window[1:] - below.take(window + 1)).max(axis=1)
            found[look] = np.maximum(above, (below.take(window) - of_window[:-1]).max(axis=1))
        return np.square(found) * len(reference) * size / (len(reference) + size)

    def _of_counts(self, place: int, codes: Codes, reference: Places | None, rows: Places, size: int, ends: Sequence[int]) -> Floats:
        column = self._columns[place]
        cells = column.missing + 1
        known = _counts_of(column) if reference is None else np.bincount(codes[reference], minlength=cells)
        drawn = codes[rows]
        windows = np.array([np.bincount(drawn[end - size : end], minlength=cells) for end in ends])
        order = _order(column)
        return of_counts(self._tests[place], known[order].astype(np.float64), windows[:, order].astype(np.float64))


def _by_size(made: Mapping[int, NumericColumn]) -> list[list[int]]:
    """The columns that one pass takes: those with equally many values in the reference."""
    groups: dict[int, list[int]] = {}
    for place, column in made.items():
        groups.setdefault(column.n, []).append(place)
    return [*groups.values()]


def _by_values(test: Test, columns: Sequence[NumericColumn], drawn: Floats, size: int, ends: Sequence[int]) -> Floats:
    """Windows x columns."""
    windows = [drawn[:, end - size : end] for end in ends]
    if test == "wasserstein":
        distances = ColumnwiseWasserstein(columns)
        return np.square([distances.scores(window) for window in windows])
    if test == "ks":
        n, heights = columns[0].n, ColumnwiseKs(columns)
        codes = np.array([column.codes(cells) for column, cells in zip(columns, drawn, strict=True)])
        found: Floats = np.array([heights.heights(codes[:, end - size : end]) for end in ends]) / lcm(n, size)
        return np.square(found) * n * size / (n + size)
    scores = np.array(
        [[statistics.measure(test, column, cells) for column, cells in zip(columns, window, strict=True)] for window in windows]
    )
    return scores if test == "psi" else np.square(scores)


def _counts_of(column: Column) -> Places:
    """How often each code occurs in the reference itself."""
    counts = np.zeros(column.missing + 1, dtype=np.int64)
    if isinstance(column, CategoricalColumn):
        counts[: len(column.counts)] = [*column.counts.values()]
    else:
        counts[1:-1:2] = np.diff(column.below)
    return counts


def _order(column: Column) -> Places:
    """The codes that count, all but that of missing values; first the category that is first in sorted order, as z takes it."""
    order = np.arange(column.missing)
    if isinstance(column, CategoricalColumn) and column.counts:
        first = column.numbers[min(column.counts)]
        order = np.concatenate([[first], order[order != first]])
    elif isinstance(column, NumericColumn):
        # Numbers come in sorted order: the smallest that the reference has stands at 1.
        order = order[1:]
    return order


def cells_of(column: Column, codes: Codes) -> Values:
    """What a reference's own codes stand for, as `Measuring` takes it: numbers, NaN for none or infinite ones, or codes."""
    if not isinstance(column, NumericColumn):
        return codes
    cells = np.full(len(codes), np.nan)
    known = (codes & 1 == 1) & (codes != column.missing)
    cells[known] = column.distinct[codes[known] >> 1]
    return cells


def _filled(cells: Floats) -> Floats:
    """A missing or infinite number replaced by the one before it (at the start, by the first there is)."""
    known = np.isfinite(cells)
    last = np.maximum.accumulate(np.where(known, np.arange(len(cells)), -1))
    last[last < 0] = int(known.argmax())
    filled: Floats = np.where(known[last], cells[last], 0.0)
    return filled


def of_counts(test: Test, reference: Floats, windows: Floats) -> Floats:
    """Evidence from counts: the reference's by value, and each window's (windows x values); values in sorted order for z."""
    n, m = reference.sum(), windows.sum(axis=1)
    sizes = np.maximum(m, 1.0)[:, None]
    p, q = reference / max(n, 1.0), windows / sizes
    if test == "jensenshannon":
        middle = (p + q) / 2.0
        found = np.maximum((rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1), 0.0) / 2.0
    elif test == "psi":
        known = (reference > 0) | (windows > 0)
        first, second = (_smoothed(np.broadcast_to(shares, q.shape), known) for shares in (p, q))
        found = np.where(known, (first - second) * np.log(first / second), 0.0).sum(axis=1)
    elif test == "chisquare":
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.nan_to_num(np.square(windows - p * sizes) / (p * sizes), nan=0.0, posinf=np.inf).sum(axis=1)
    else:
        pooled = (reference[0] + windows[:, 0]) / (n + sizes[:, 0])
        error = np.maximum(pooled * (1.0 - pooled) * (1.0 / n + 1.0 / sizes[:, 0]), 1e-300)
        found = np.square(p[0] - q[:, 0]) / error
    return np.where(m > 0, found, 0.0)


def _smoothed(shares: Floats, known: Values) -> Floats:
    """Empty cells as Evidently fills them (see statistics.py); cells of neither sample stay out."""
    some = np.where(shares > 0, shares, np.inf).min(axis=1, keepdims=True)
    filling = np.where(some <= 0.0001, some / 10**6, 0.0001)
    return np.where(shares > 0, shares, np.where(known, filling, 1.0))
