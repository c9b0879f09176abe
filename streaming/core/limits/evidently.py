"""Evidently's tests over the window against the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streaming.core import statistics
from streaming.core.columnwise import ColumnwiseKs, ColumnwiseWasserstein
from streaming.core.limits.seam import chosen_columns
from streaming.core.reference import Codes, Column, Floats, NumericColumn, Reference, Values
from streaming.core.verdict import Finding
from streaming.core.window import Rows, SlidingWindow

_KEPT = 16
"""Sets of columns whose tables are kept; which columns have missing values changes from window to window."""


@dataclass(frozen=True, slots=True)
class EvidentlyLimit:
    """One of Evidently's tests, or its own choice ("auto"), on each of its columns.

    `threshold` None is Evidently's default for the test. `share` None: any column that drifts breaches the limit; else
    that share of the columns (0.5 is Evidently's DataDriftPreset). `columns` None: every column the test can take, the
    prediction among them.
    """

    name: str
    test: statistics.Test | Literal["auto"] = "auto"
    threshold: float | None = None
    share: float | None = None
    columns: tuple[str, ...] | None = None

    @property
    def fingerprint(self) -> str:
        return repr(("evidently", self.name, self.test, self.threshold, self.share, self.columns))

    def build(self, reference: Reference, size: int) -> "EvidentlyJudge":
        return EvidentlyJudge(self, chosen_columns(self.name, reference, self.columns, self._takes))

    def _takes(self, column: Column) -> bool:
        return self.test == "auto" or column.kind in statistics.ALLOWED_KINDS[self.test]


class EvidentlyJudge:
    """Keeps nothing between windows: each is measured anew against the reference."""

    def __init__(self, limit: EvidentlyLimit, columns: Sequence[tuple[int, Column]]) -> None:
        self._limit = limit
        self._columns = columns
        given = limit.threshold
        self._threshold = {test: usual if given is None else given for test, usual in statistics.DEFAULT_THRESHOLDS.items()}
        self._groups: dict[tuple[statistics.Test, int], list[tuple[int, NumericColumn]]] = {}
        for index, column in columns:
            if isinstance(column, NumericColumn) and column.n and (test := self._tested(column)) is not None:
                self._groups.setdefault((test, column.n), []).append((index, column))
        self._together: dict[tuple[str, tuple[int, ...]], ColumnwiseKs | ColumnwiseWasserstein] = {}

    def observe(self, rows: Rows) -> Sequence[int]:
        return ()

    def judge(self, window: SlidingWindow) -> tuple[list[Finding], bool]:
        known = self._measured(window)
        findings = [known.get(index) or self._measure(column, window.values(index)) for index, column in self._columns]
        drifting = sum(finding.over for finding in findings)
        share = self._limit.share
        return findings, drifting > 0 if share is None else drifting >= share * len(findings)

    def began(self, window: SlidingWindow) -> int | None:
        return None

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> str:
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
            if chosen:
                scores = self._scores(test, chosen, codes, cells)
                found |= {index: self._finding(column, test, score) for (index, column), score in zip(chosen, scores, strict=True)}
        return found

    def _tested(self, column: NumericColumn) -> statistics.Test | None:
        """The test of this column, if it is one that columns can take together and no look at the window is needed to choose it."""
        if self._limit.test == "auto":
            return statistics.choose(column, column.distinct[:0]) if len(column.distinct) > statistics.FEW_VALUES else None
        return self._limit.test if self._limit.test in ("ks", "wasserstein") else None

    def _scores(self, test: statistics.Test, chosen: Sequence[tuple[int, NumericColumn]], codes: Codes, cells: Floats) -> list[float]:
        key = (test, tuple([index for index, _ in chosen]))
        measuring = self._together.get(key)
        if measuring is None:
            columns = [column for _, column in chosen]
            measuring = ColumnwiseKs(columns) if test == "ks" else ColumnwiseWasserstein(columns)
            if len(self._together) >= _KEPT:
                self._together.clear()
            self._together[key] = measuring
        return measuring.scores(codes) if isinstance(measuring, ColumnwiseKs) else measuring.scores(cells)

    def _measure(self, column: Column, cells: Values) -> Finding:
        limit = self._limit
        known = column.known(cells)
        if not len(known) or not column.n:
            test = "auto" if limit.test == "auto" else limit.test
            lacking = "window" if column.n else "reference"
            return Finding(
                limit.name, column.name, test, float("nan"), limit.threshold or float("nan"), False, f"the {lacking} has no values"
            )
        chosen = statistics.choose(column, known) if limit.test == "auto" else limit.test
        return self._finding(column, chosen, statistics.measure(chosen, column, known))

    def _finding(self, column: Column, test: statistics.Test, score: float) -> Finding:
        threshold = self._threshold[test]
        unknown = "" if score == score else "the test is not defined on these values"
        return Finding(self._limit.name, column.name, test, score, threshold, statistics.over(test, score, threshold), unknown)
