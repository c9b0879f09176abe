"""Evidently's tests over the window against the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streaming.core import statistics
from streaming.core.bootstrap import evidence
from streaming.core.columnwise import ColumnwiseKs, ColumnwiseWasserstein
from streaming.core.limits.calibrated import ColumnLimit, WindowLimits, tested_columns, window_limits
from streaming.core.limits.pace import Pace, WindowBudget
from streaming.core.limits.seam import chosen_columns
from streaming.core.reference import Codes, Column, Floats, NumericColumn, Reference, Values, winsorized
from streaming.core.verdict import Finding
from streaming.core.window import Rows, SlidingWindow

_KEPT = 16
"""Sets of columns whose tables are kept; which columns have missing values changes from window to window."""


@dataclass(frozen=True, slots=True)
class EvidentlyLimit:
    """One of Evidently's tests, or its own choice ("auto"), on each of its columns.

    `threshold` None is Evidently's default for the test. `share` None: any column that drifts breaches the limit; else
    that share of the columns (0.5 is Evidently's DataDriftPreset). `columns` None: every column the test can take, the
    prediction among them. `winsorize`: numbers of the reference and of the window are clipped to the reference's range without its
    outliers (`winsorized`) before they are compared; infinities and missing values are left out all the same.

    `budget` in place of a threshold: each column's comes from calibration (see bootstrap/calibration.py), so that the limit as a whole
    alarms falsely so often; a column's test is then the one that fits its reference, whatever the window. Its memory: 8 calibrations of
    about a megabyte a process.
    """

    name: str
    test: statistics.Test | Literal["auto"] = "auto"
    threshold: float | None = None
    share: float | None = None
    columns: tuple[str, ...] | None = None
    winsorize: bool = False
    budget: WindowBudget | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and self.budget is not None:
            raise ValueError(f"limit {self.name!r}: a threshold, or a budget that one is calibrated from, not both")

    @property
    def fingerprint(self) -> str:
        return repr(("evidently", self.name, self.test, self.threshold, self.share, self.columns, self.winsorize, self.budget))

    def build(self, reference: Reference, size: int) -> "EvidentlyJudge":
        chosen = self.chosen(reference)
        if self.budget is None:
            return EvidentlyJudge(self, chosen)
        tested = tested_columns(self.test, chosen, self.share, size, self.budget.slide)
        return EvidentlyJudge(self, chosen, window_limits(self.name, tested, reference) if tested else None, self.budget.build(size))

    def chosen(self, reference: Reference) -> list[tuple[int, Column]]:
        """Its columns with their numbers, as they are judged; SettingsError when there are none."""
        chosen = chosen_columns(self.name, reference, self.columns, self._takes)
        if not self.winsorize:
            return chosen
        return [(index, winsorized(column) if isinstance(column, NumericColumn) else column) for index, column in chosen]

    def _takes(self, column: Column) -> bool:
        return self.test == "auto" or column.kind in statistics.ALLOWED_KINDS[self.test]


class EvidentlyJudge:
    """Keeps no rows between windows: each is measured anew against the reference. A budget in time has a pace to remember."""

    def __init__(
        self,
        limit: EvidentlyLimit,
        columns: Sequence[tuple[int, Column]],
        calibrated: WindowLimits | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._limit = limit
        self._columns = columns
        self._calibrated = calibrated
        self._pace = pace
        self._limits: Mapping[int, ColumnLimit] = {}
        given = limit.threshold
        self._threshold = {test: usual if given is None else given for test, usual in statistics.DEFAULT_THRESHOLDS.items()}
        self._groups: dict[tuple[statistics.Test, int], list[tuple[int, NumericColumn]]] = {}
        for index, column in columns:
            if isinstance(column, NumericColumn) and column.n and (test := self._tested(column)) is not None:
                self._groups.setdefault((test, column.n), []).append((index, column))
        self._together: dict[tuple[str, tuple[int, ...]], ColumnwiseKs | ColumnwiseWasserstein] = {}

    def observe(self, rows: Rows) -> Sequence[int]:
        if self._pace is not None:
            self._pace.observe(rows.times)
        return ()

    def judge(self, window: SlidingWindow) -> tuple[list[Finding], bool]:
        if self._calibrated is not None and self._pace is not None:
            self._limits = self._calibrated.at(self._pace.events(window.rows))
        known = self._measured(window)
        findings = [known.get(index) or self._measure(index, column, window.values(index)) for index, column in self._columns]
        drifting = sum(finding.over for finding in findings)
        share = self._limit.share
        return findings, drifting > 0 if share is None else drifting >= share * len(findings)

    def began(self, window: SlidingWindow) -> int | None:
        return None

    def state(self) -> dict[str, Any]:
        return {} if self._pace is None else self._pace.state()

    def restore(self, state: Mapping[str, Any]) -> str:
        if self._pace is not None:
            self._pace.restore(state)
        return ""

    def _measured(self, window: SlidingWindow) -> dict[int, Finding]:
        """The findings of those columns that can be measured together: numeric ones without a missing value in the window."""
        found: dict[int, Finding] = {}
        for (test, _), group in self._groups.items():
            indexes = [index for index, _ in group]
            cells = window.numbers(indexes)
            finite = np.logical_and.reduce(np.isfinite(cells), axis=1)
            chosen, codes = group, window.codes[indexes]
            if not finite.all():
                chosen = [one for one, whole in zip(group, finite.tolist(), strict=True) if whole]
                codes, cells = codes[finite], cells[finite]
            if chosen and self._limit.winsorize:
                ends = np.array([column.ends for _, column in chosen])
                cells = cells.clip(ends[:, :1], ends[:, 1:])
                # The window's codes are those of the unclipped reference.
                codes = np.array([column.codes(row) for (_, column), row in zip(chosen, cells, strict=True)]) if test == "ks" else codes
            if chosen:
                found |= self._together_measured(test, chosen, codes, cells)
        return found

    def _tested(self, column: NumericColumn) -> statistics.Test | None:
        """The test of this column, if it is one that columns can take together and no look at the window is needed to choose it."""
        if self._limit.test == "auto" and self._limit.budget is not None:
            test = evidence.fixed_test("auto", column)
            return test if test in ("ks", "wasserstein") else None
        if self._limit.test == "auto":
            return statistics.choose(column, column.distinct[:0]) if len(column.distinct) > statistics.FEW_VALUES else None
        return self._limit.test if self._limit.test in ("ks", "wasserstein") else None

    def _together_measured(
        self, test: statistics.Test, chosen: Sequence[tuple[int, NumericColumn]], codes: Codes, cells: Floats
    ) -> dict[int, Finding]:
        key = (test, tuple([index for index, _ in chosen]))
        measuring = self._together.get(key)
        if measuring is None:
            columns = [column for _, column in chosen]
            measuring = ColumnwiseKs(columns) if test == "ks" else ColumnwiseWasserstein(columns)
            if len(self._together) >= _KEPT:
                self._together.clear()
            self._together[key] = measuring
        if isinstance(measuring, ColumnwiseWasserstein):
            scores = measuring.scores(cells)
            return {index: self._finding(index, column, test, score) for (index, column), score in zip(chosen, scores, strict=True)}
        n, m = chosen[0][1].n, codes.shape[1]
        return {
            index: self._finding(index, column, test, statistics.ks_p(n, m, height), evidence.of_height(n, m, height))
            for (index, column), height in zip(chosen, measuring.heights(codes).tolist(), strict=True)
        }

    def _measure(self, index: int, column: Column, cells: Values) -> Finding:
        limit = self._limit
        known = column.known(cells)
        if not len(known) or not column.n:
            lacking = "window" if column.n else "reference"
            threshold = limit.threshold or float("nan")
            return Finding(limit.name, column.name, limit.test, float("nan"), threshold, False, f"the {lacking} has no values")
        if index in self._limits:
            test = self._limits[index].test
            return self._finding(index, column, test, statistics.measure(test, column, known), evidence.measured(test, column, known))
        test = statistics.choose(column, known) if limit.test == "auto" else limit.test
        return self._finding(index, column, test, statistics.measure(test, column, known))

    def _finding(self, index: int, column: Column, test: statistics.Test, score: float, found: float | None = None) -> Finding:
        """`found`: the evidence, where it is not told by the score alone; it counts only where the limit is calibrated."""
        unknown = "" if score == score else "the test is not defined on these values"
        name, limit = self._limit.name, self._limits.get(index)
        if limit is None:
            threshold = self._threshold[test]
            return Finding(name, column.name, test, score, threshold, statistics.over(test, score, threshold), unknown)
        if limit.unknown:
            return Finding(name, column.name, test, score, limit.score, False, unknown or limit.unknown)
        over = (evidence.of_score(test, score) if found is None else found) >= limit.evidence
        return Finding(name, column.name, test, score, limit.score, over, unknown)
