"""A source of events through the fleet of the live watcher: its outcomes, its alarms, and their sum. Performs nothing."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference.log import Record
from streaming.backtest.tabular import TableJudging
from streaming.core.fleet import Fleet
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import Reference
from streaming.core.verdict import Decision, Outcome
from streaming.replay import kind_of
from streaming.sources.seam import EventSource, Stretch
from streaming.sources.table import Chunk, TableSource
from streaming.table_replay import Alarm

_SHOWN = 10
"""Places of what could not be read, shown to people."""


class Stopwatch:
    """How long it took to read references and to turn budgets into limits, which happens once for each version."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def references(self, read: Callable[[str, str], Reference]) -> Callable[[str, str], Reference]:
        def timed(model: str, version: str) -> Reference:
            began = time.perf_counter()
            try:
                return read(model, version)
            finally:
                self.seconds += time.perf_counter() - began

        return timed

    def monitor(self, spec: MonitorSpec, reference: Reference, partition: int, counts: Counter[str]) -> Monitor:
        began = time.perf_counter()
        try:
            return Monitor(spec, reference, partition, counts)
        finally:
            self.seconds += time.perf_counter() - began


@dataclass
class SourceReplay:
    """The outcomes of a source, as the live watcher would have had them. An alarm is a decision to retrain or to alert."""

    source: EventSource
    fleet: Fleet
    stretch: Stretch
    stopwatch: Stopwatch
    alarms: list[dict[str, Any]] = field(default_factory=list)
    events: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Outcome]:
        began = time.perf_counter()
        for records in self.source:
            for outcome in self.fleet.feed(records):
                self.outcomes[kind_of(outcome)] += 1
                if isinstance(outcome, Decision) and outcome.action != "hold":
                    self.alarms.append(_alarm(outcome, self.events, records))
                yield outcome
            self.events += count_events(records)
            self.seconds = time.perf_counter() - began
        self.seconds = time.perf_counter() - began

    def summary(self) -> dict[str, Any]:
        """As `TableReplay.summary`, with the source, the stretch of it, what could not be read, and counts by kind of outcome."""
        names = ("breached", "retrain", "alert", "hold", "promoted", "retraining_finished", "unmonitored")
        unreadable, rate = self._unreadable(), round(self.events / max(self.seconds - self.stopwatch.seconds, 1e-6))
        return {
            "events": self.events,
            "alarms": self.alarms,
            "seconds": round(self.seconds, 3),
            "events_per_second": rate,
            "calibration_seconds": round(self.stopwatch.seconds, 3),
            "notes": self._notes(),
            "verdicts": self.outcomes["verdict"] + self.outcomes["breached"],
            **{name: self.outcomes[name] for name in names},
            "source": self.source.name,
            **self.stretch.as_dict(),
            "unreadable": self.source.unreadable.as_dict(more=sum(unreadable.values())),
        }

    def summary_text(self) -> str:
        """The sum for people."""
        told = self.summary()
        counted = ", ".join(f"{told[name]} {name.replace('_', ' ')}" for name in ("events", "verdicts", "retrain", "alert", "hold"))
        speed = f"{told['events_per_second']} events/s, {told['calibration_seconds']:.1f} s of calibration"
        return "\n".join([*told["notes"], *unreadable_lines(told), f"{counted}; {speed}"])

    def _unreadable(self) -> Mapping[str, int]:
        """Events whose bodies the fleet could not read, by model and reason."""
        models = self.fleet.status()["models"]
        return {
            f"{model}: {name.removeprefix('unreadable ')}": count
            for model, status in models.items()
            for name, count in status["counts"].items()
            if name.startswith("unreadable ") and count
        }

    def _notes(self) -> list[str]:
        status = self.fleet.status()
        notes = [*self.source.notes]
        unknown = {model: count for model, count in status["unknown_models"].items() if model != "/"}
        notes += [f"{model} is not configured: its {count} events are left out" for model, count in unknown.items()]
        notes += [f"{reason}: {count} events whose bodies cannot be read" for reason, count in self._unreadable().items()]
        for model, told in status["models"].items():
            if told["unmonitored"]:
                notes.append(f"{model} version {told['version']} is not monitored: {told['unmonitored']}")
            if not told["version"]:
                notes.append(f"{model}: no version of it was seen, and none is live in the repository; nothing is judged")
        return notes


def unreadable_lines(told: Mapping[str, Any]) -> list[str]:
    """What could not be read, for people."""
    count, places = told["unreadable"]["count"], told["unreadable"]["places"][:_SHOWN]
    lines = [f"{one['place']}: {one['reason']}" for one in places]
    more = count - len(lines)
    return [*lines, *([f"{more} more events could not be read"] if more > 0 and lines else [])]


def _alarm(decision: Decision, before: int, records: Sequence[Record]) -> dict[str, Any]:
    """As `Alarm.as_dict`, with its place on the log: `event` is the how-many-th of the stretch it is, `since` an offset."""
    verdict = decision.verdict
    partition, (offset, time_) = verdict.window.partition, verdict.fell
    at = before + count_events(records, until=(partition, offset))
    plain = Alarm(at, time_, verdict, decision.explanation).as_dict()
    findings = [{**one, "since": None if one["since"] is None else one["since"] - 1} for one in plain["findings"]]
    where = {"partition": partition, "offset": offset, "time": time_}
    what = {"id": decision.id, "action": decision.action, "run_id": decision.run_id, "model": verdict.model, "version": verdict.version}
    return {**plain, "findings": findings, **where, **what}


def count_events(records: Sequence[Record], *, until: tuple[int, int] | None = None) -> int:
    """How many places of the log the records stand on, up to the first at `until` (partition, offset) where it is given: the records
    that a source makes of one line stand on one place."""
    count, last = 0, (-1, -1)
    for record in records:
        place = (record.partition, record.offset)
        count += place != last
        if place == until:
            break
        last = place
    return count


@dataclass
class TableSourceReplay:
    """The rows of a table against its reference, chunk by chunk: what `TableReplay` says of them, in memory that does not grow."""

    source: TableSource
    spec: MonitorSpec
    stretch: Stretch
    keep_reference: bool = False
    alarms: list[Alarm] = field(default_factory=list)
    events: int = 0
    seconds: float = 0.0
    calibration_seconds: float = 0.0

    def __iter__(self) -> Iterator[Alarm]:
        began = time.perf_counter()
        judging = TableJudging(self.spec, self.source.schema, self.source.reference, keep_reference=self.keep_reference)
        for chunk in self.source:
            for verdict, decision in judging.take(Chunk(chunk.cells, chunk.times)):
                if decision is not None and decision.action != "hold":
                    self.alarms.append(Alarm(verdict.fell.offset + 1, verdict.fell.time, verdict, decision.explanation))
                    yield self.alarms[-1]
            self.events += len(chunk.times)
            self.seconds, self.calibration_seconds = time.perf_counter() - began, judging.calibration_seconds
        self.seconds = time.perf_counter() - began

    def summary(self) -> dict[str, Any]:
        """As `SourceReplay.summary`; an alarm's `event` and `since` count the rows of the stretch, from 1."""
        return {
            "events": self.events,
            "alarms": [{**alarm.as_dict(), "time": alarm.time if self.source.timed else None} for alarm in self.alarms],
            "seconds": round(self.seconds, 3),
            "events_per_second": round(self.events / max(self.seconds - self.calibration_seconds, 1e-6)),
            "calibration_seconds": round(self.calibration_seconds, 3),
            "notes": self.source.notes,
            "source": self.source.name,
            **self.stretch.as_dict(),
            "unreadable": self.source.unreadable.as_dict(),
        }

    def summary_text(self) -> str:
        """The sum for people."""
        told = self.summary()
        count = len(self.alarms)
        speed = f"{told['events_per_second']} events/s, {self.calibration_seconds:.1f} s of calibration"
        counted = f"{self.events} events, {count} alarm{'' if count == 1 else 's'}"
        return "\n".join([*told["notes"], *unreadable_lines(told), f"{counted}; {speed}"])
