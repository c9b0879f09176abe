"""Records through the fleet of the live watcher, with tried settings riding along: what is decoded once is judged by all of them.

Pairing, versions, decoding and labels are the same whatever the tried setting, so the fleet does that once; what its monitor gets, each
tried setting's monitor gets too, and its own governor hears of its verdicts and of the fleet's on labels, in the log's order.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import merge
from typing import Any

import numpy as np

from inference import event as events
from inference.errors import SettingsError, SnapshotError
from inference.log import Record
from streaming.backtest.inject import Injection, injected
from streaming.backtest.question import Course, KnownDrift
from streaming.backtest.tally import Tally, is_of_labels, is_of_rows
from streaming.core.fleet import Fleet
from streaming.core.governor import Governing
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import Reference
from streaming.core.verdict import Decision, Notice, Outcome, Verdict
from streaming.core.window import Rows

_LABELS = 50
"""Labels between two looks at the model's accuracy."""

_ALONE = (events.PROMOTED, events.RETRAINING_FINISHED)
"""What the governors of all settings must hear of between the rows before and those behind it."""


class Rider:
    """A tried setting of one model on one partition. A setting that does not fit a version's reference sits that version out."""

    def __init__(self, spec: MonitorSpec, tally: Tally) -> None:
        self._spec = spec
        self._tally = tally
        self.governing = spec.governor.build()
        self._monitor: Monitor | None = None
        self._waiting: list[Verdict] = []

    def took_over(self, reference: Reference, partition: int) -> None:
        try:
            self._monitor = Monitor(self._spec, reference, partition)
        except SettingsError as error:
            self._monitor = None
            self._tally.note(f"{reference.model} version {reference.version} cannot be judged so: {error}")

    def take(self, rows: Rows) -> None:
        if self._monitor is not None:
            self._waiting += self._monitor.take(rows)

    def settle(self, of_labels: Sequence[Verdict], event_at: Callable[[Verdict], int]) -> None:
        """Judge what came up, and the fleet's verdicts on labels in between."""
        if self._monitor is None:
            of_labels = ()
        for verdict in merge(self._waiting, of_labels, key=_order):
            decision = self.governing.judge(verdict, verdict.window)
            self._tally.judged(verdict, event_at(verdict), self.governing)
            if decision is not None:
                self._tally.decided(decision, event_at(verdict))
        self._waiting = []

    def state(self) -> dict[str, Any]:
        return {"governor": self.governing.state(), "monitor": self._monitor.state() if self._monitor else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.governing.restore(state["governor"])
        if self._monitor is not None and state["monitor"] is not None:
            self._monitor.restore(state["monitor"])


def _order(verdict: Verdict) -> tuple[int, bool]:
    """In the log's order; labels come behind the rows of their record."""
    return verdict.fell.offset, is_of_labels(verdict)


class Ride:
    """One model on one partition: what the fleet's monitor gets passes through here."""

    def __init__(self, tally: Tally, spec: MonitorSpec, riders: Sequence[Rider], injections: Sequence[Injection]) -> None:
        self._tally = tally
        self._spec = spec
        # It says what the fleet's own says; here one can ask it which incident is open.
        self._governing = spec.governor.build()
        self._riders = riders
        self._injections = injections
        self._reference: Reference | None = None
        self._offsets: list[Any] = []
        self._before = 0
        self._labels = 0

    def took_over(self, reference: Reference, partition: int) -> None:
        self._reference = reference
        for rider in self._riders:
            rider.took_over(reference, partition)

    def rows(self, rows: Rows, reference: Reference) -> Rows:
        """What comes to the monitor, with the injections in it."""
        course = self._tally.course
        if not self._offsets:
            self._before = course.rows
        rows = injected(rows, reference, self._injections, course.rows)
        self._offsets.append(rows.offsets)
        course.passed(rows.times)
        for rider in self._riders:
            rider.take(rows)
        return rows

    def parts(self, stretch: Sequence[Record]) -> Iterator[tuple[list[Record], bool]]:
        """The records in parts that are to be fed one by one: a promotion or a run's end is alone, and a part ends with each 50th label.

        With each part, whether it ends so. Labels are counted from the first of all, so no batch's end changes anything.
        """
        part: list[Record] = []
        for record in stretch:
            kind = record.event.type
            if kind in _ALONE and part:
                yield part, False
                part = []
            part.append(record)
            self._labels += kind == events.LABEL
            look = kind == events.LABEL and self._labels % _LABELS == 0
            if look or kind in _ALONE:
                yield part, look
                part = []
        if part:
            yield part, False

    def labelled(self, labels: Mapping[str, Any] | None, time: float) -> None:
        """What the model's labels say now (`ModelStream.status`)."""
        if labels and self._spec.errors is not None and self._reference is not None:
            categorical = self._reference.schema.prediction == "categorical"
            self._tally.accuracy.told(labels, time, self._spec.errors.size, categorical=categorical)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """What the fleet said of the part that was just fed."""
        offsets = np.concatenate([np.empty(0, dtype=np.int64), *self._offsets])
        before = self._before if self._offsets else self._tally.course.rows
        self._offsets = []

        def event_at(verdict: Verdict) -> int:
            return before + int(offsets.searchsorted(verdict.fell.offset, "right"))

        for outcome in outcomes:
            if isinstance(outcome, Verdict):
                self._verdict(outcome, event_at(outcome))
            elif isinstance(outcome, Decision):
                self._tally.decided(outcome, event_at(outcome.verdict), self._reference)
            else:
                self._notice(outcome)
        of_labels = [one for one in outcomes if isinstance(one, Verdict) and is_of_labels(one)]
        for rider in self._riders:
            rider.settle(of_labels, event_at)

    def _verdict(self, verdict: Verdict, event: int) -> None:
        governing: Governing | None = None
        if is_of_rows(verdict):
            governing = self._governing
            governing.judge(verdict, verdict.window)
        self._tally.judged(verdict, event, governing)

    def _notice(self, notice: Notice) -> None:
        for governing in (self._governing, *(rider.governing for rider in self._riders)):
            if notice.kind == "promoted":
                governing.promoted()
            elif notice.kind == "retraining_finished":
                governing.finished(str(notice.data["run_id"]))
        self._tally.noticed(notice)

    def state(self) -> dict[str, Any]:
        return {"governor": self._governing.state(), "riders": [rider.state() for rider in self._riders], "labels": self._labels}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._governing.restore(state["governor"])
        self._labels = int(state["labels"])
        for rider, memory in zip(self._riders, state["riders"], strict=True):
            rider.restore(memory)


class _Boarding(Monitor):
    """The monitor of the live watcher, whose rows pass through a ride first."""

    def __init__(self, spec: MonitorSpec, reference: Reference, partition: int, counts: Counter[str], ride: Ride) -> None:
        super().__init__(spec, reference, partition, counts)
        self._ride = ride
        ride.took_over(reference, partition)

    def take(self, rows: Rows) -> Iterator[Verdict]:
        return super().take(self._ride.rows(rows, self.reference))


class FleetRide:
    """All models, as configured (`specs`) and in each of `tried`; the tallies are in the same order, the configuration's first."""

    def __init__(
        self,
        specs: Mapping[str, MonitorSpec],
        tried: Sequence[Mapping[str, MonitorSpec]],
        references: Callable[[str, str], Reference],
        *,
        live: Callable[[str], str | None],
        annotation: str,
        drifts: Sequence[KnownDrift] = (),
        injections: Sequence[Injection] = (),
    ) -> None:
        self.calibration_seconds = 0.0
        self._specs = specs
        self._tried = tried
        self._injections = injections
        known = [*drifts, *(injection.drift for injection in injections)]
        self.courses = {model: Course([drift for drift in known if drift.is_of(model)]) for model in specs}
        self.tallies = [{model: Tally(model, self.courses[model], full=not number) for model in specs} for number in range(len(tried) + 1)]
        self.records = 0
        self._rides: dict[tuple[int, str], Ride] = {}
        self._problems: list[str] = []
        self.fleet = Fleet(specs, references, live=live, annotation=annotation, monitor=self._monitor)

    def _monitor(self, spec: MonitorSpec, reference: Reference, partition: int, counts: Counter[str]) -> Monitor:
        for injection in self._of(reference.model):
            try:
                injection.check(reference)
            except SettingsError as error:
                self._problems += error.problems
        began = time.perf_counter()
        try:
            return _Boarding(spec, reference, partition, counts, self._ride(partition, reference.model))
        finally:
            self.calibration_seconds += time.perf_counter() - began

    def _of(self, model: str) -> list[Injection]:
        return [injection for injection in self._injections if injection.drift.is_of(model)]

    def _ride(self, partition: int, model: str) -> Ride:
        ride = self._rides.get((partition, model))
        if ride is None:
            pairs = zip(self._tried, self.tallies[1:], strict=True)
            riders = [Rider(specs[model], tallies[model]) for specs, tallies in pairs]
            ride = self._rides[partition, model] = Ride(self.tallies[0][model], self._specs[model], riders, self._of(model))
        return ride

    def feed(self, records: Sequence[Record]) -> list[Outcome]:
        """The outcomes of the live watcher with the configured settings. SettingsError: an injection does not fit a version."""
        self.records += len(records)
        outcomes: list[Outcome] = []
        for (partition, model), stretch in _stretches(records).items():
            if model in self._specs:
                outcomes += self._fed(self._ride(partition, model), model, stretch)
            else:
                self.fleet.feed(stretch)
        return outcomes

    def _fed(self, ride: Ride, model: str, stretch: Sequence[Record]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for part, look in ride.parts(stretch):
            said = self.fleet.feed(part)
            if self._problems:
                raise SettingsError(self._problems)
            ride.settle(said)
            if look:
                ride.labelled(self.fleet.status()["models"][model]["labels"], part[-1].timestamp)
            outcomes += said
        return outcomes

    def state(self) -> dict[str, Any]:
        """All that what comes depends on, as plain values."""
        partitions = sorted({partition for partition, _ in self._rides})
        return {
            "records": self.records,
            "fleet": {str(partition): self.fleet.state(partition) for partition in partitions},
            "rides": {f"{partition} {model}": ride.state() for (partition, model), ride in self._rides.items()},
            "courses": {model: course.state() for model, course in self.courses.items()},
            "tallies": [{model: tally.state() for model, tally in tallies.items()} for tallies in self.tallies],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, on one with the same settings that was fed nothing yet; SnapshotError: it gave no such thing."""
        try:
            for partition, memory in state["fleet"].items():
                self.fleet.restore(int(partition), memory)
            for name, memory in state["rides"].items():
                partition, _, model = name.partition(" ")
                self._ride(int(partition), model).restore(memory)
            for model, course in self.courses.items():
                course.restore(state["courses"][model])
            for tallies, memories in zip(self.tallies, state["tallies"], strict=True):
                for model, tally in tallies.items():
                    tally.restore(memories[model])
            self.records = int(state["records"])
        except (KeyError, ValueError, TypeError) as error:
            raise SnapshotError(f"the state of this replay cannot be gone on from: {error!r}") from error


def _stretches(records: Sequence[Record]) -> dict[tuple[int, str], list[Record]]:
    stretches: dict[tuple[int, str], list[Record]] = {}
    for record in records:
        stretches.setdefault((record.partition, record.event.model), []).append(record)
    return stretches
