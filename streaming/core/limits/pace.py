"""A budget of false alarms in rows or in log time, and the pace of the rows that turns time into rows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log2
from typing import Any

from pydantic import BaseModel, FiniteFloat, NonNegativeInt

from streaming.core.reference import Floats

USUAL_PER_SECOND = 1_000_000 / 86_400
"""Rows per second that a budget in time is taken for before their pace is known."""
_FEWEST, _MOST = 2.0**10, 2.0**50


@dataclass(frozen=True, slots=True)
class WindowBudget:
    """One false alarm in `events` rows or in `seconds` of log time (the other is None), of a window that is looked at each `slide` rows."""

    slide: int
    events: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.events is None) == (self.seconds is None):
            raise ValueError("a budget is so many events, or so many seconds: give one of the two")
        if not (self.events or self.seconds or 0.0) >= 1.0:
            raise ValueError(f"a budget is at least 1 event or second per false alarm, not {self.events or self.seconds}")

    def part(self, part: float, share: float = 1.0) -> "WindowBudget":
        """This part of the budget, for a stream that gets this share of the rows."""
        events = None if self.events is None else max(1.0, self.events * share / part)
        return replace(self, events=events, seconds=None if self.seconds is None else self.seconds / part)

    def build(self, size: int) -> "Pace":
        return Pace(self, size)


class _State(BaseModel):
    rows: NonNegativeInt
    began: FiniteFloat
    events: float


class Pace:
    """Rows per false alarm. A budget in time follows the pace of the rows: by powers of two, looked at when the first window of `size`
    rows is full and whenever their number has doubled since."""

    def __init__(self, budget: WindowBudget, size: int) -> None:
        self._budget = budget
        self._size = size
        self._rows = 0
        self._began = 0.0
        self._events = budget.events or rounded(USUAL_PER_SECOND * (budget.seconds or 0.0))
        self._before = self._events
        self._changes: list[tuple[int, float]] = []

    def observe(self, times: Floats) -> None:
        """The log times of the next rows."""
        seconds = self._budget.seconds
        if seconds is None or not len(times):
            return
        if not self._rows:
            self._began = float(times[0])
        self._before, self._changes = self._events, []
        before, self._rows = self._rows, self._rows + len(times)
        looked = self._size
        while looked <= self._rows:
            if looked > before:
                self._events = rounded(looked / max(float(times[looked - before - 1]) - self._began, 1e-3) * seconds)
                self._changes.append((looked, self._events))
            looked *= 2

    def events(self, row: int) -> float:
        """As of this row, one of those observed last."""
        known = self._before
        for looked, events in self._changes:
            known = events if looked <= row else known
        return known

    def state(self) -> dict[str, Any]:
        return {} if self._budget.seconds is None else {"rows": self._rows, "began": self._began, "events": self._events}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, ValueError when it gave no such thing."""
        if self._budget.seconds is None:
            return
        known = _State.model_validate(state)
        if not _FEWEST <= known.events <= _MOST:
            raise ValueError(f"a memory of limits for {known.events:g} events")
        self._rows, self._began, self._events, self._before = known.rows, known.began, known.events, known.events
        self._changes = []


def rounded(events: float) -> float:
    """To a power of two, within what limits can be had for: a limit grows with its logarithm."""
    return float(2.0 ** round(log2(min(max(events, _FEWEST), _MOST))))
