"""The policies that are compared: driftloop's default, Evidently's two, and two of river's detectors alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, DetectorLimit, EvidentlyLimit, Limit
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import Reference
from streaming.core.window import CountWindow, Rows
from streaming.detectors import Adwin, Kswin

WINDOW, SLIDE = 1_000, 100
BUDGET = 100_000.0
_PRESET_SHARE = 0.5
_ADWIN_CLOCK = 32
_KSWIN_CLOCK = 10


class Watcher(Protocol):
    """Policies at work on one stream."""

    def take(self, rows: Rows) -> Mapping[str, list[int]]:
        """The triggers of each policy in these rows: after how many rows since the stream's start."""
        ...


@dataclass(frozen=True, slots=True)
class Group:
    """Policies that one pass gives. What is slow gets less of each stream: at most so many seeds, quiet events, and events before
    and after a change."""

    policies: tuple[str, ...]
    told: tuple[str, ...]
    watcher: Callable[[Reference], Watcher]
    seeds: int = 1_000_000
    events: int = 1_000_000_000
    before: int = 2_000
    after: int = 1_000_000_000


class Driftloop:
    """Every alarm of the default limit: one that counts for a single row never covers the next."""

    def __init__(self, reference: Reference) -> None:
        self._judge = BudgetLimit("budget", BUDGET).build(reference, 1)
        self._rows = 0

    def take(self, rows: Rows) -> Mapping[str, list[int]]:
        before = self._rows
        self._rows += len(rows)
        return {"driftloop": [before + row for row in self._judge.observe(rows)]}


class Windows:
    """Evidently's default test of each column over each window: any of them, and the preset's share of them."""

    def __init__(self, reference: Reference) -> None:
        self._monitor = _monitor(EvidentlyLimit("auto"), reference, WINDOW, SLIDE)

    def take(self, rows: Rows) -> Mapping[str, list[int]]:
        every, preset = [], []
        for verdict in self._monitor.take(rows):
            drifting = sum(finding.over for finding in verdict.findings)
            if drifting:
                every.append(verdict.predictions)
            if drifting >= _PRESET_SHARE * len(verdict.findings):
                preset.append(verdict.predictions)
        return {"evidently": every, "preset": preset}


class Alone:
    """One of river's detectors on each column's rank in the reference and on its distance from the middle, its detections told every
    `clock` rows."""

    def __init__(self, name: str, spec: Adwin | Kswin, clock: int, reference: Reference) -> None:
        # Its own default for each signal: no share of it.
        limit = DetectorLimit(name, spec.kind, lambda number, signals: spec.build(number, 1))
        self._name = name
        self._monitor = _monitor(limit, reference, clock, clock)

    def take(self, rows: Rows) -> Mapping[str, list[int]]:
        return {self._name: [verdict.predictions for verdict in self._monitor.take(rows) if verdict.drift]}


def _monitor(limit: Limit, reference: Reference, size: int, slide: int) -> Monitor:
    return Monitor(MonitorSpec(CountWindow(size, slide), (limit,), Governor()), reference, 0)


def _adwin(reference: Reference) -> Watcher:
    return Alone("adwin", Adwin(delta=0.002), _ADWIN_CLOCK, reference)


def _kswin(reference: Reference) -> Watcher:
    return Alone("kswin", Kswin(alpha=0.005), _KSWIN_CLOCK, reference)


GROUPS = {
    "driftloop": Group(
        ("driftloop",),
        (f"driftloop's default: a budget of one false alarm in {BUDGET:,.0f} events, judged after every event",),
        Driftloop,
    ),
    "evidently": Group(
        ("evidently", "preset"),
        (
            f"Evidently's default test and limit for each column, any column over; windows of {WINDOW:,}, each {SLIDE} events",
            f"Evidently's DataDriftPreset: half of the columns over; windows of {WINDOW:,}, each {SLIDE} events",
        ),
        Windows,
    ),
    "adwin": Group(
        ("adwin",),
        (
            "river's ADWIN alone, delta 0.002 for each signal, on each column's rank in the reference and the rank's distance from the"
            f" middle; any detection, told every {_ADWIN_CLOCK} events (its own clock)",
        ),
        _adwin,
    ),
    "kswin": Group(
        ("kswin",),
        (
            "river's KSWIN alone, alpha 0.005, windows of 100 and 30, on the same signals; any detection, told every"
            f" {_KSWIN_CLOCK} events; at some 4,000 values a second it gets little of each stream",
        ),
        _kswin,
        seeds=1,
        events=1_000,
        before=100,
        after=1_000,
    ),
}
