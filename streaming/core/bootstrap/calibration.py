"""Limits of window tests that keep a budget of false alarms, and the false alarms of limits that are given: from quiet windows.

A quiet window and the reference it is compared with are both drawn in blocks from the reference (stretches.py), so that its finite
size, its dependence and its cycles count. A path of windows slides as the real one does, three windows' lengths far; the highest of each
length is what an alarm, which counts for as long, is decided by.

1. Each column's evidence is put on one scale by the tail of its own law (tails.py): a noisy column does not blind the others.
2. Over the columns at each look the highest counts (or the k-th, where a share of the columns must be over): dependent columns are
   not paid for twice. The level that it passes once in the budget, a factor of 2 in hand, is each column's limit on its own scale.
3. A limit grows by what drawing in blocks loses of the long-run variance, and by what it costs that this variance is known from so
   many rows only (as the CUSUM's, see cusum/calibration.py), and is never below what the reference's own windows reach against the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log

import numpy as np

from streaming.core.bootstrap.evidence import Measuring, cells_of
from streaming.core.bootstrap.stretches import Dice, Sample
from streaming.core.bootstrap.tails import Tail, Tails, looks_between, tails
from streaming.core.cusum.signals import Signals
from streaming.core.reference import CategoricalColumn, Codes, Column, Floats, Reference, Values
from streaming.core.statistics import Test

_LOOKS = 4_500
_CELLS = 800_000_000
"""What the windows of all paths may cost, in cells that are looked at; of a long reference or many columns there are fewer paths."""
_FEWEST_PATHS = 40
_STRETCHES = 3
_LOOKS_A_WINDOW = 10
_OWN_LOOKS = 40
_SAFETY = 2.0
_DEPENDENT = 1.1
_LEAST_KNOWN = 3.0
_ENOUGH = 30
_FEW = 20
_FARTHEST = 10
_NEARLY_ALL = 0.8
_ONCE = "values that occur once in the reference make this p-value 0 too often for a budget; jensenshannon or psi can keep one"
_FAR = "a few far values decide this score, and how often they come is not known; `winsorize: true` or ks can keep a budget"


@dataclass(frozen=True, slots=True)
class Tested:
    """What a limit tests: columns as they are judged, their numbers in the reference, the test of each, the window's size and slide in
    rows, and how many columns must be over at once."""

    columns: tuple[Column, ...]
    indexes: tuple[int, ...]
    tests: tuple[Test, ...]
    size: int
    slide: int
    over: int = 1


@dataclass(frozen=True)
class Quiet:
    """Evidence of quiet windows, paths x looks x columns, looked at each `coarse` rows, `looks` of them in a window's length.

    Of each column: `grown`, what drawing in blocks loses of its variance; `unsure`, the relative variance of what is known of it; `own`,
    the highest evidence of the reference's own windows.
    """

    tested: Tested
    sample: Sample
    evidence: Floats
    coarse: int
    looks: int
    grown: Floats
    unsure: Floats
    own: Floats

    @cached_property
    def tails(self) -> Tails:
        """The law of each column's highest evidence in a window's length."""
        columns = zip(self.tested.tests, self.tested.columns, self._untellable.tolist(), strict=True)
        alike = [(test, column.n, left_out) for test, column, left_out in columns]
        return tails(self._highest(self.evidence), alike)

    @cached_property
    def tail(self) -> Tail:
        """The law of what the limit as a whole is decided by, on the columns' common scale."""
        rarity = self.tails.rarity(self.evidence)
        # What no limit can be had for decides nothing: its column has none (`_untellable`).
        rarity[~np.isfinite(rarity) | self._untellable] = -np.inf
        return Tail.of(self._highest(self._decisive(rarity)[..., None])[:, 0])

    def limits(self, events: float) -> Floats:
        """The evidence that each column may not reach, for one false alarm in so many rows; `inf` where no limit keeps to that."""
        chance = self.looks * self.coarse / (events * _SAFETY)
        looks = len(self.tested.columns) * self.looks
        chance /= looks_between(log(looks / min(chance, 0.5)), self.tested.size, self.coarse, self.tested.slide)
        rarity = self.tail.at(min(chance, 1.0))
        value = self.tails.value(rarity)
        steepness = value / (self.tails.scale * np.exp(self.tails.shape * max(rarity, 0.0)))
        doubt = np.clip(steepness * self.unsure, 1e-9, _LEAST_KNOWN)
        limits = np.maximum(value * self.grown * np.expm1(doubt) / doubt, self.own)
        return np.where(self._untellable, np.inf, limits)

    @cached_property
    def _untellable(self) -> Values:
        """The columns that no limit keeps to a budget on: what decides their scores is too rare for the reference to tell how rare."""
        return np.array([untellable(test, column) != "" for column, test in zip(self.tested.columns, self.tested.tests, strict=True)])

    def rate(self, limits: Floats) -> float:
        """False alarms per row where each column's evidence may not reach these; one that lasts counts anew each window's length."""
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(limits > 0.0, self.evidence * self.grown / limits, np.inf)
        relative[..., np.isinf(limits)] = 0.0
        decisive = self._decisive(relative)
        counted = _counted(decisive.reshape(-1) >= 1.0, self.looks)
        rows = decisive.size * self.coarse
        if counted >= _ENOUGH:
            rate = counted / rows
        else:
            rate = Tail.of(self._highest(decisive[..., None])[:, 0]).chance(1.0) / (self.looks * self.coarse)
        if rate <= 0.0:
            return 0.0
        # While an alarm counts there is no other: without that they would come at the rate `free`.
        lasts = self.looks * self.coarse
        free = rate / max(1.0 - rate * lasts, 1e-3)
        looks = len(self.tested.columns) * self.looks
        free *= looks_between(log(looks / min(free * lasts, 0.5)), self.tested.size, self.coarse, self.tested.slide)
        return 1.0 / (1.0 / free + lasts)

    def _decisive(self, values: Floats) -> Floats:
        """Of the columns at each look the highest, or the k-th where so many must be over."""
        over = min(self.tested.over, values.shape[-1])
        decisive: Floats = values.max(axis=-1) if over == 1 else np.partition(values, -over, axis=-1)[..., -over]
        return decisive

    def _highest(self, values: Floats) -> Floats:
        """The highest in each window's length, stretches x columns."""
        highest: Floats = values.reshape(-1, self.looks, values.shape[-1]).max(axis=1)
        return highest


def untellable(test: Test, column: Column) -> str:
    """Why no limit on this test of this column keeps to a budget; "" where one does.

    A p-value is 0 for a value that the reference does not hold; such come as often as values that occur once there (Good 1953). A
    distance or its bins follow the farthest values: where ten of them make up nearly all of the variance, how often they come is not known.
    """
    if isinstance(column, CategoricalColumn):
        return _ONCE if test == "chisquare" and 1 in column.counts.values() else ""
    if test not in ("wasserstein", "psi", "jensenshannon") or len(column.distinct) <= _FEW:
        return ""
    squares = np.sort(np.square(column.values - np.median(column.values)))
    return _FAR if squares[-_FARTHEST:].sum() > _NEARLY_ALL * squares.sum() else ""


def _counted(over: Values, looks: int) -> int:
    """How many alarms these looks are, where one counts for so many looks."""
    count, until = 0, 0
    for place in np.flatnonzero(over).tolist():
        if place >= until:
            count, until = count + 1, place + looks
    return count


def quiet(tested: Tested, reference: Reference, *seed: object, rows: Sequence[Values] | None = None) -> Quiet:
    """Quiet windows by the bootstrap of the reference, or of other quiet `rows` (an array a column of the reference, as `Column.array`
    makes them) against the reference as it is."""
    originals = [reference.columns[index] for index in tested.indexes]
    if rows is None:
        codes = reference.codes[list(tested.indexes)]
        cells = [cells_of(column, own) for column, own in zip(originals, codes, strict=True)]
    else:
        chosen = [rows[index] for index in tested.indexes]
        codes = np.array([column.codes(own) for column, own in zip(originals, chosen, strict=True)], dtype=np.int32)
        cells = [
            own if column.kind == "numeric" else codes[place] for place, (column, own) in enumerate(zip(originals, chosen, strict=True))
        ]
    values, of_column = _signals(originals, codes)
    sample = Sample.of(values)
    measuring = Measuring(tested.columns, tested.tests, cells)
    coarse = tested.slide * max(1, tested.size // (_LOOKS_A_WINDOW * tested.slide))
    looks = max(1, round(tested.size / coarse))
    grown, unsure = _known(sample, of_column, len(originals))
    return Quiet(
        tested,
        sample,
        _paths(measuring, tested, sample, Dice("bootstrap", *seed), coarse, looks, None if rows is None else len(rows[0])),
        coarse,
        looks,
        grown,
        unsure,
        _own(measuring, tested, sample.rows) if rows is None else np.zeros(len(originals)),
    )


def _signals(columns: Sequence[Column], codes: Codes) -> tuple[Floats, list[int]]:
    """All signals of single columns, rows x signals, and of which column each is."""
    parts = [Signals([column]).of(own[None]) for column, own in zip(columns, codes, strict=True)]
    return np.concatenate(parts, axis=1), [place for place, part in enumerate(parts) for _ in range(part.shape[1])]


def _known(sample: Sample, of_column: Sequence[int], columns: int) -> tuple[Floats, Floats]:
    """By how much each column's evidence must grow, and how unsure that is: of its signals, the one that depends most."""
    ratio, lost = sample.known.ratio, sample.known.ratio / sample.known.by_blocks(sample.block)
    relative = np.where(ratio > _DEPENDENT, 4.0 / 3.0 * 2.0 * sample.known.bandwidth / sample.rows, 0.0)
    grown, unsure = np.ones(columns), np.zeros(columns)
    np.maximum.at(grown, of_column, np.where(ratio > _DEPENDENT, lost, 1.0))
    np.maximum.at(unsure, of_column, relative)
    return grown, unsure


def _paths(measuring: Measuring, tested: Tested, sample: Sample, dice: Dice, coarse: int, looks: int, fixed: int | None) -> Floats:
    """Evidence of each path's windows: paths x looks x columns. `fixed`: against the reference as it is."""
    a_path = _STRETCHES * looks
    own = max(column.rows for column in tested.columns)
    cells = len(tested.columns) * (a_path * (tested.size + own // 4) + 4 * own)
    count = max(_FEWEST_PATHS, min(_LOOKS // a_path, _CELLS // cells))
    ends = [tested.size + coarse * look for look in range(a_path)]
    paths = []
    for begin in dice.below(max(1, sample.rows), count).tolist():
        against = None if fixed is not None else sample.drawn(0, own, dice)
        paths.append(measuring.evidence(against, sample.drawn(sample.rows + begin, ends[-1], dice), tested.size, ends))
    return np.array(paths)


def _own(measuring: Measuring, tested: Tested, rows: int) -> Floats:
    """The highest evidence of the reference's own windows, each against the rest of it."""
    highest = np.zeros(len(tested.columns))
    if rows < 3 * tested.size:
        return highest
    every = np.arange(rows)
    step = max(tested.slide, (rows - tested.size) // _OWN_LOOKS, 1)
    for end in range(tested.size, rows + 1, step):
        inside = (every >= end - tested.size) & (every < end)
        found = measuring.evidence(every[~inside], every[inside], tested.size, [tested.size])[0]
        highest = np.maximum(highest, np.where(np.isfinite(found), found, 0.0))
    return highest


def columns_over(share: float | None, findings: int) -> int:
    """How many columns must be over their limits for the whole to be."""
    return 1 if share is None else max(1, ceil(share * findings))
