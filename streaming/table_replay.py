"""driftloop on a table that one already has: alarms, and what they found, without any event or server."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import log
from typing import Any

import numpy as np

from streaming.actions.explained import change_text
from streaming.core.governor import Governing, Governor
from streaming.core.limits import BudgetLimit
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import Reference, Values, prepare
from streaming.core.verdict import Explanation, Finding, Verdict
from streaming.core.window import CountWindow, Rows
from streaming.tables import Tables

_CHUNK = 20_000
_FIRST_BASELINE = 1000
_TOLD = 5
DEFAULT_SPEC = MonitorSpec(CountWindow(1000, 100), (BudgetLimit("budget", 100_000.0),), Governor(1, 1, cooldown=0.0))
"""A budget of one false alarm in 100,000 rows, and no confirmation beside it."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """`event` is the row, from 1, at which the verdict fell; `explanation` is the decision's."""

    event: int
    time: float
    verdict: Verdict
    explanation: tuple[Explanation, ...] = ()

    @property
    def findings(self) -> list[Finding]:
        """What is over its limit, in the order of the explanation; behind it the rest, the furthest first."""
        over = [finding for finding in self.verdict.findings if finding.over]
        places = {_key(one): place for place, one in enumerate(self.explanation)}
        return sorted(over, key=lambda finding: (places.get(_key(finding), len(places)), -_beyond(finding)))

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values; `since` is a row, from 1, and `share` the finding's part of the verdict."""
        explained = {_key(one): one for one in self.explanation}
        return {"event": self.event, "findings": [_as_dict(finding, explained.get(_key(finding))) for finding in self.findings]}


@dataclass
class TableReplay:
    """Judges the rows in order. An alarm is a decision of the governor to retrain or to alert.

    After an alarm the rows behind it become the reference, as they would by a retraining: the first 1,000, then twice as many,
    until there are as many as the given reference had. With `keep_reference` the given one stays, and a change alarms once.
    """

    tables: Tables
    spec: MonitorSpec
    keep_reference: bool = False
    alarms: list[Alarm] = field(default_factory=list)
    events: int = 0
    seconds: float = 0.0
    calibration_seconds: float = 0.0

    def __iter__(self) -> Iterator[Alarm]:
        began = time.perf_counter()
        for alarm in self._kept() if self.keep_reference else self._renewed():
            self.alarms.append(alarm)
            self.events, self.seconds = alarm.event, time.perf_counter() - began
            yield alarm
        self.events, self.seconds = len(self.tables.times), time.perf_counter() - began

    def _kept(self) -> Iterator[Alarm]:
        governing = replace(self.spec.governor, retrain=False).build()
        return self._judged(self._monitor(self.tables.reference), governing, 0, len(self.tables.times))

    def _renewed(self) -> Iterator[Alarm]:
        total, size = len(self.tables.times), len(next(iter(self.tables.reference.values())))
        sample, since, grown, start = self.tables.reference, 0, size, 0
        governing = self.spec.governor.build()
        while start < total:
            # A reference that still grows is taken anew once there are twice as many rows.
            stop = total if grown >= size else min(total, since + 2 * grown)
            alarm = next(self._judged(self._monitor(sample), governing, start, stop), None)
            if alarm is not None:
                yield alarm
                since, grown = alarm.event, min(size, _FIRST_BASELINE)
                start = since + grown
                governing = self.spec.governor.build()
            else:
                start, grown = stop, min(size, 2 * grown)
            sample = {name: cells[since : since + grown] for name, cells in self.tables.rows.items()}

    def _judged(self, monitor: Monitor, governing: Governing, start: int, stop: int) -> Iterator[Alarm]:
        for first in range(start, stop, _CHUNK):
            for verdict in monitor.take(self._rows(monitor.reference, first, min(stop, first + _CHUNK))):
                began = monitor.drift_began(verdict) if verdict.drift else verdict.window
                decision = governing.judge(verdict, began)
                if decision is not None and decision.action != "hold":
                    yield Alarm(verdict.fell.offset + 1, verdict.fell.time, verdict, monitor.explained(decision).explanation)

    def _rows(self, reference: Reference, start: int, stop: int) -> Rows:
        cells = [self.tables.rows[column.name][start:stop] for column in reference.columns]
        return Rows.of(reference.columns, cells, np.arange(start, stop), self.tables.times[start:stop])

    def _monitor(self, sample: dict[str, Values]) -> Monitor:
        began = time.perf_counter()
        monitor = Monitor(self.spec, prepare("table/replay", "1", self.tables.schema, sample), 0)
        self.calibration_seconds += time.perf_counter() - began
        return monitor

    def summary(self) -> dict[str, Any]:
        """What was judged and found, as plain JSON values."""
        return {
            "events": self.events,
            "alarms": [alarm.as_dict() for alarm in self.alarms],
            "seconds": round(self.seconds, 3),
            "events_per_second": self._rate,
            "calibration_seconds": round(self.calibration_seconds, 3),
            "notes": self.tables.notes,
        }

    def summary_text(self) -> str:
        """The sum for people, with what was left out."""
        count = len(self.alarms)
        told = f"{self.events} events, {count} alarm{'' if count == 1 else 's'}"
        speed = f"{self._rate} events/s, {self.calibration_seconds:.1f} s of calibration"
        return "\n".join([*self.tables.notes, f"{told}; {speed}"])

    @property
    def _rate(self) -> int:
        """Events per second of judging, without the calibration."""
        return round(self.events / max(self.seconds - self.calibration_seconds, 1e-6))


def _key(one: Finding | Explanation) -> tuple[str, ...]:
    return one.limit, one.feature, one.test, one.signal


def _beyond(finding: Finding) -> float:
    """How far beyond its limit, in powers of e."""
    return abs(log(max(finding.score, 1e-300) / max(finding.threshold, 1e-300)))


def _as_dict(finding: Finding, explained: Explanation | None) -> dict[str, Any]:
    told = {"feature": finding.feature, "detector": finding.test, "score": finding.score, "limit": finding.threshold}
    plain = explained.as_dict() if explained else {}
    more = {name: plain.get(name) for name in ("direction", "what", "before", "after", "earlier", "share", "moved")}
    return {**told, "signal": finding.signal, **more, "since": explained.since.offset + 1 if explained else None}


def as_text(alarm: Alarm) -> str:
    """An alarm as one line for people."""
    explained = {_key(one): one.as_dict() for one in alarm.explanation}

    def told(finding: Finding) -> str:
        one = explained.get(_key(finding))
        since = f"event {one['since']['offset'] + 1}" if one else ""
        return f"; {change_text(one, since)}" if one else ""

    found = ", ".join(
        f"{finding.feature} {finding.signal or finding.test} ({finding.score:.3g}, limit {finding.threshold:.3g}{told(finding)})"
        for finding in alarm.findings[:_TOLD]
    )
    more = len(alarm.findings) - _TOLD
    return f"alarm at event {alarm.event}: {found}{f' and {more} more' if more > 0 else ''}"
