"""What a model's limits can see, and how often they would cry wolf: `driftloop calibrate`. Judges nothing that lives, changes nothing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, sqrt
from typing import Any

import numpy as np
from scipy.special import ndtri

from streaming.calibrate_budget import events_of, false_alarms, of_budget, three_digits
from streaming.core.bootstrap.calibration import Quiet, quiet
from streaming.core.bootstrap.evidence import cells_of, evidence_at, score_of
from streaming.core.bootstrap.stretches import Dice
from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, DetectorLimit, EvidentlyLimit, Limit
from streaming.core.limits.calibrated import tested_columns
from streaming.core.limits.pace import WindowBudget
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import Codes, Column, Floats, NumericColumn, Reference, Values
from streaming.core.soundness import Soundness, soundness
from streaming.core.statistics import DEFAULT_THRESHOLDS, P_VALUES
from streaming.core.window import CountWindow, Rows

_USUAL_BUDGET = 100_000.0
_UPDATES = {"kswin": 40_000}
_MOST_UPDATES = 3_000_000
_MOST_EVENTS = 100_000


@dataclass(frozen=True, slots=True)
class QuietRows:
    """A stretch of history in which nothing changed: cells by column of the reference, log times (None: unknown), and where from."""

    cells: Sequence[Values]
    times: Values | None
    source: str

    @property
    def rate(self) -> float | None:
        """Rows per second, where the times tell."""
        if self.times is None or len(self.times) < 2 or self.times[-1] <= self.times[0]:
            return None
        return float((len(self.times) - 1) / (self.times[-1] - self.times[0]))


@dataclass
class Calibrating:
    """The limits of one version against its reference. `rate`: predictions per second, None: not known.

    With `history` limits are measured on it, and drawn from it, in place of the reference.
    """

    spec: MonitorSpec
    reference: Reference
    rate: float | None = None
    history: QuietRows | None = None
    notes: Sequence[str] = ()
    seconds: float = field(default=0.0, init=False)

    def report(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        began = time.perf_counter()
        rate = self.rate or (self.history.rate if self.history else None)
        seen = self._counted() if self.history else {}
        limits = []
        for view in self.spec.views:
            for limit in view.limits:
                told = self._of_limit(limit, view.window, rate)
                told |= {"name": limit.name, "window": view.name}
                if self.history is not None:
                    told["in_history"] = seen[(view.name, limit.name)]
                limits.append(told)
        sound = soundness(self.reference)
        self.seconds = time.perf_counter() - began
        return {
            "model": self.reference.model,
            "version": self.reference.version,
            "events_per_second": rate,
            "reference": _of_reference(sound),
            "history": {"source": self.history.source, "events": len(self.history.cells[0])} if self.history else None,
            "limits": limits,
            "notes": [*self.notes, *sound.warnings()],
            "seconds": round(self.seconds, 2),
        }

    def _counted(self) -> dict[tuple[str, str], int]:
        """The alarms of each limit in the history, each counting for a window's length."""
        assert self.history is not None
        count = len(self.history.cells[0])
        times = np.arange(count, dtype=np.float64) if self.history.times is None else self.history.times
        rows = Rows.of(self.reference.columns, self.history.cells, np.arange(count), times)
        return _alarms(replace(self.spec, segments=None, errors=None, schema=None), self.reference, rows)

    def _of_limit(self, limit: Limit, window: Any, rate: float | None) -> dict[str, Any]:
        if isinstance(limit, BudgetLimit):
            return of_budget(limit, self.reference, rate)
        if not isinstance(window, CountWindow):
            return {
                "kind": _kind(limit),
                "told": "only limits on windows of a number of predictions are drawn; replay a quiet stretch (--quiet)",
            }
        if isinstance(limit, EvidentlyLimit):
            return self._of_evidently(limit, window, rate)
        return self._of_replayed(limit, window, rate)

    def _budget(self, rate: float | None) -> float:
        """Events per false alarm that thresholds are told for: those of the model's own budget, else 100,000."""
        for view in self.spec.views:
            for limit in view.limits:
                budget = limit.budget if isinstance(limit, EvidentlyLimit) else limit
                if isinstance(budget, BudgetLimit | WindowBudget):
                    return events_of(budget.events, budget.seconds, rate)
        return _USUAL_BUDGET

    def _of_evidently(self, limit: EvidentlyLimit, window: CountWindow, rate: float | None) -> dict[str, Any]:
        tested = tested_columns(limit.test, limit.chosen(self.reference), limit.share, window.size, window.slide)
        if tested is None:
            return {"kind": "evidently", "told": "no column has a value in the reference"}
        rows = self.history.cells if self.history else None
        found = quiet(tested, self.reference, self.reference.model, self.reference.version, limit.name, rows=rows)
        budget = limit.budget
        events = self._budget(rate) if budget is None else events_of(budget.events, budget.seconds, rate)
        holding = found.limits(events)
        given, thresholds = holding, None
        if budget is None:
            thresholds = [DEFAULT_THRESHOLDS[test] if limit.threshold is None else limit.threshold for test in tested.tests]
            given = np.array(
                [
                    evidence_at(test, column, threshold, window.size)
                    for test, column, threshold in zip(tested.tests, tested.columns, thresholds, strict=True)
                ]
            )
        return {
            "kind": "evidently",
            "calibrated": budget is not None,
            "false_alarms": false_alarms(found.rate(given), rate),
            "budget_events": events,
            "columns": _columns(found, given, holding, thresholds),
            "holding": _holding(found, holding),
        }

    def _of_replayed(self, limit: Limit, window: CountWindow, rate: float | None) -> dict[str, Any]:
        """A limit that is fed row by row: it is fed quiet rows drawn from the reference, and its alarms are counted."""
        columns = self.reference.columns
        signals = 2 * len(limit.columns or columns) if isinstance(limit, DetectorLimit) else len(columns)
        updates = _UPDATES.get(limit.kind, _MOST_UPDATES) if isinstance(limit, DetectorLimit) else _MOST_UPDATES
        count = max(2 * window.size, min(_MOST_EVENTS, updates // signals))
        sound = soundness(self.reference)
        places = sound.sample.drawn(sound.sample.rows, count, Dice("replayed", self.reference.model, self.reference.version, limit.name))
        codes = self.reference.codes[:, places]
        cells = tuple(_cells(column, own) for column, own in zip(columns, codes, strict=True))
        rows = Rows(cells, codes, np.arange(count), np.arange(count, dtype=np.float64))
        alone = MonitorSpec(window, (limit,), Governor())
        alarms = _alarms(alone, self.reference, rows)[("", limit.name)]
        return {"kind": _kind(limit), "false_alarms": false_alarms(alarms / count, rate), "alarms": alarms, "events": count}


def _kind(limit: Limit) -> str:
    return limit.kind if isinstance(limit, DetectorLimit) else type(limit).__name__.removesuffix("Limit").lower()


def _alarms(spec: MonitorSpec, reference: Reference, rows: Rows) -> dict[tuple[str, str], int]:
    """By window and limit: alarms in these rows, where one counts for its window's length."""
    over: dict[tuple[str, str], list[int]] = {(view.name, limit.name): [] for view in spec.views for limit in view.limits}
    lasts = {view.name: view.window.size for view in spec.views}
    monitor = Monitor(spec, reference, 0)
    for start in range(0, len(rows), 20_000):
        for verdict in monitor.take(rows.part(start, min(len(rows), start + 20_000))):
            for name in verdict.breached:
                over[(verdict.of_window, name)].append(verdict.predictions)
    return {key: _counted(places, lasts[key[0]]) for key, places in over.items()}


def _counted(rows: Sequence[int], lasts: int) -> int:
    """How many alarms these verdicts (after so many rows, ascending) are: none within so many rows of one that counts."""
    count, until = 0, 0
    for row in rows:
        if row >= until:
            count, until = count + 1, row + lasts
    return count


def _cells(column: Column, codes: Codes) -> Values:
    """The cells that have these codes in the reference itself."""
    if isinstance(column, NumericColumn):
        return cells_of(column, codes)
    cells: Values = np.array([*column.counts, None, None], dtype=object)[codes]
    return cells


# Evidently's tests


def _columns(found: Quiet, given: Floats, holding: Floats, thresholds: Sequence[float] | None) -> list[dict[str, Any]]:
    tested = found.tested
    told = []
    for place, (column, test) in enumerate(zip(tested.columns, tested.tests, strict=True)):
        limit, holds = float(given[place]), _score(test, column, float(holding[place]), tested.size)
        told.append(
            {
                "column": column.name,
                "test": test,
                "threshold": holds if thresholds is None else thresholds[place],
                "holding": holds,
                "shift": _shift(test, column, limit, tested.size),
            }
        )
    return told


def _score(test: Any, column: Column, evidence: float, size: int) -> float | None:
    return three_digits(score_of(test, column, evidence, size)) if isfinite(evidence) else None


_SHIFT: dict[str, Callable[[float, Column, int], float]] = {
    # Of a normal column: its distance is the shift; its D is 2 Phi(shift / 2) - 1.
    "wasserstein": lambda evidence, column, size: sqrt(evidence),
    "ks": lambda evidence, column, size: (
        2.0 * float(ndtri((1.0 + min(0.999999, sqrt(evidence * (column.n + size) / (column.n * size)))) / 2.0))
    ),
}


def _shift(test: str, column: Column, evidence: float, size: int) -> float | None:
    """The smallest shift in standard deviations that half of the windows wholly behind it tell; None where there is no such formula."""
    return three_digits(_SHIFT[test](evidence, column, size)) if test in _SHIFT and isfinite(evidence) else None


def _holding(found: Quiet, limits: Floats) -> dict[str, float | None]:
    """Of each test the one threshold that holds the budget on every column."""
    holding: dict[str, float | None] = {}
    for test in dict.fromkeys(found.tested.tests):
        scores = [
            score_of(test, column, limit, found.tested.size)
            for column, own, limit in zip(found.tested.columns, found.tested.tests, limits.tolist(), strict=True)
            if own == test and isfinite(limit)
        ]
        one = (min(scores) if test in P_VALUES else max(scores)) if scores else 0.0
        # A p-value of 0 is no threshold: only the calibrated limit, which is not one on p, can tell.
        holding[test] = three_digits(one) if one > 0.0 else None
    return holding


# The reference


def _of_reference(sound: Soundness) -> dict[str, Any]:
    return {
        "rows": sound.sample.rows,
        "block": sound.sample.block,
        "periods": [three_digits(period) for period in sound.sample.periods],
        "drifting": list(sound.drifting),
    }
