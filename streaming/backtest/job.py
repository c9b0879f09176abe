"""The work of one process of a backtest: a source through some models, as configured and in some tried settings."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.log import Record
from inference.versions import Repository
from streaming.assemble import monitor_spec, references
from streaming.backtest.inject import Injection
from streaming.backtest.parking import Parked, identity
from streaming.backtest.question import KnownDrift
from streaming.backtest.result import Ridden
from streaming.backtest.ride import FleetRide
from streaming.backtest.tabular import MODEL, TableRide
from streaming.backtest.tries import Setting
from streaming.core.verdict import Decision, Notice, Outcome
from streaming.replay import as_line, as_text
from streaming.settings import Settings
from streaming.sources.seam import EventSource
from streaming.sources.table import TableSource
from streaming.table_replay import Alarm
from streaming.table_replay import as_text as alarm_text

Tell = Callable[[int, Sequence[str]], None]
"""Hears after each batch how many events have gone by, and which lines there are for people."""


@dataclass(frozen=True)
class Question:
    """All that a process needs to know, and that can be sent to it: `open_source` opens the source anew in each.

    `settings` are the configured one and those tried; `lines` says which outcomes are told as they come: "" none, "text" those that act,
    "json" all. `resume`: go on from where an earlier run of the same question was stopped; states are kept in `folder`.
    """

    settings: Sequence[Setting]
    drifts: Sequence[KnownDrift] = ()
    injections: Sequence[Injection] = ()
    lines: str = ""
    keep_reference: bool = False
    resume: bool = False
    folder: Path = field(default_factory=Path)

    def identity(self, job: "Job", source: str) -> str:
        """What a state of it is called."""
        documents = [self.settings[number].documents for number in (0, *job.tried)]
        injected = [injection.text for injection in self.injections]
        return identity(source, job.models, documents, self.drifts, injected, self.keep_reference)


@dataclass(frozen=True)
class Job:
    """Which models, and which of the tried settings by their numbers (from 1)."""

    models: tuple[str, ...]
    tried: tuple[int, ...]
    first: bool = True


def ride_events(
    question: Question, job: Job, settings: Settings, open_source: Callable[[], EventSource], tell: Tell, stop: Callable[[], bool]
) -> Ridden:
    """Events through the fleet."""
    began, source = time.perf_counter(), open_source()
    repository = Repository(settings.repository)
    configured, *tried = [
        {model: monitor_spec(question.settings[number].models[model]) for model in job.models} for number in (0, *job.tried)
    ]
    ride = FleetRide(
        configured,
        tried,
        references(repository),
        live=repository.current,
        annotation=settings.version_annotation,
        drifts=question.drifts,
        injections=question.injections,
    )
    parked = Parked(question.folder, question.identity(job, source.name))
    state = parked.read() if question.resume else None
    if state is not None:
        ride.restore(state)
    interrupted = False
    for records in _unread(source, ride.records):
        outcomes = ride.feed(records)
        tell(ride.records, _lines(question.lines, outcomes))
        interrupted = stop()
        if interrupted or parked.due():
            parked.write(ride.state())
        if interrupted:
            break
    if not interrupted:
        parked.delete()
    status = ride.fleet.status()
    counts = {model: told["counts"] for model, told in status["models"].items()}
    bodies = sum(count for told in counts.values() for name, count in told.items() if name.startswith("unreadable "))
    return Ridden(
        dict(zip((0, *job.tried), ride.tallies, strict=True)),
        ride.records,
        time.perf_counter() - began,
        ride.calibration_seconds,
        [*source.notes, *_fleet_notes(status, settings)],
        source.unreadable.total,
        bodies,
        source.unreadable.places,
        counts,
        interrupted,
    )


def _lines(wanted: str, outcomes: Sequence[Outcome]) -> list[str]:
    """The outcomes that are told as they come."""
    if wanted == "json":
        return [as_line(one) for one in outcomes]
    if wanted != "text":
        return []
    return [as_text(one) for one in outcomes if isinstance(one, Notice) or (isinstance(one, Decision) and one.action != "hold")]


def _unread(source: Iterable[list[Record]], done: int) -> Iterator[list[Record]]:
    """The batches behind the first `done` records."""
    for records in source:
        if done >= len(records):
            done -= len(records)
            continue
        yield records[done:]
        done = 0


def _fleet_notes(status: Mapping[str, Any], settings: Settings) -> list[str]:
    """What people should know of what the fleet saw."""
    notes = []
    for model, count in status["unknown_models"].items():
        if model not in settings.models and model != "/":
            notes.append(f"{model} is not configured: its {count} events are left out")
    for model, told in status["models"].items():
        notes += [
            f"{model}: {name.removeprefix('unreadable ')}: {count} events whose bodies cannot be read"
            for name, count in told["counts"].items()
            if name.startswith("unreadable ") and count
        ]
        if not told["version"]:
            notes.append(f"{model}: no version of it was seen, and none is live in the repository; nothing is judged")
    return notes


def ride_table(question: Question, job: Job, open_source: Callable[[], TableSource], tell: Tell, stop: Callable[[], bool]) -> Ridden:
    """A table's rows; the settings are those of one model, whatever its name."""
    source = open_source()
    began = time.perf_counter()
    specs = [monitor_spec(next(iter(question.settings[number].models.values()))) for number in (0, *job.tried)]
    ride = TableRide(
        specs,
        source.schema,
        source.reference,
        keep_reference=question.keep_reference,
        timed=source.timed,
        drifts=question.drifts,
        injections=question.injections,
    )
    parked = Parked(question.folder, question.identity(job, source.name))
    state = parked.read() if question.resume else None
    if state is not None:
        ride.restore(state)
    interrupted, skipped = False, ride.course.rows
    for chunk in source:
        count = len(chunk.times)
        if skipped >= count:
            skipped -= count
            continue
        decisions = ride.feed(chunk.part(skipped, count))
        skipped = 0
        tell(ride.course.rows, [_alarm_line(one) for one in decisions] if question.lines == "text" else ())
        interrupted = stop()
        if interrupted or parked.due():
            parked.write(ride.state())
        if interrupted:
            break
    if not interrupted:
        parked.delete()
    return Ridden(
        {number: {MODEL: tally} for number, tally in zip((0, *job.tried), ride.tallies, strict=True)},
        ride.course.rows,
        time.perf_counter() - began,
        ride.calibration_seconds,
        [*source.notes],
        source.unreadable.total,
        0,
        source.unreadable.places,
        {},
        interrupted,
    )


def _alarm_line(decision: Decision) -> str:
    verdict = decision.verdict
    return alarm_text(Alarm(verdict.fell.offset + 1, verdict.fell.time, verdict, decision.explanation))
