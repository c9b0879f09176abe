"""The rows of a table through one setting's monitor, chunk by chunk: what `TableReplay` says of them, in memory that does not grow."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from inference.errors import SettingsError, SnapshotError
from inference.versions import Schema
from streaming.backtest.inject import Injection, injected
from streaming.backtest.question import Course, KnownDrift
from streaming.backtest.tally import Tally
from streaming.core.governor import Governing
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import Reference, Values, prepare
from streaming.core.verdict import Decision, Verdict
from streaming.core.window import Rows, as_plain, from_plain
from streaming.sources.table import Chunk

MODEL = "table/replay"
_FIRST_BASELINE = 1000

Cells = Mapping[str, Values]
"""Cells of the same rows by the name of their column, as `Column.array` makes them."""


class TableJudging:
    """One setting: judges the rows in order, and takes the rows behind an alarm as the reference, as a retraining would.

    First 1,000 of them, then twice as many, until there are as many as the given reference had; with `keep_reference` the given one stays.
    Memory: two references' rows.
    """

    def __init__(self, spec: MonitorSpec, schema: Schema, sample: Cells, *, keep_reference: bool = False) -> None:
        self._spec = spec
        self._schema = schema
        self._sample: Cells = sample
        self._size = len(next(iter(sample.values())))
        self._governor = replace(spec.governor, retrain=False) if keep_reference else spec.governor
        self._keep = keep_reference
        self._governing = self._governor.build()
        self._monitor: Monitor | None = None
        self._at = 0
        # The reference is taken from `_since` on, has `_grown` rows, and is judged by from `_start` on.
        self._since, self._grown, self._start = 0, self._size, 0
        self._behind: list[Cells] = []
        self.calibration_seconds = 0.0

    @property
    def governing(self) -> Governing:
        """The governor; after an alarm one without memory."""
        return self._governing

    @property
    def reference(self) -> Reference:
        """What the rows are measured by."""
        return self._ready().reference

    def take(self, chunk: Chunk) -> Iterator[tuple[Verdict, Decision | None]]:
        """The next rows; each verdict and what the governor makes of it, explained where it acts."""
        while len(chunk.times):
            if self._at < self._start:
                count = min(len(chunk.times), self._start - self._at)
                self._went_by(chunk.part(0, count))
            else:
                count = min(len(chunk.times), self._until() - self._at)
                for verdict, decision in self._judged(chunk.part(0, count)):
                    yield verdict, decision
                    if decision is not None and decision.action != "hold" and not self._keep:
                        count = verdict.fell.offset + 1 - self._at
                        self._at += count
                        self._alarmed()
                        break
                else:
                    self._went_by(chunk.part(0, count))
                    self._grow()
            chunk = chunk.part(count, len(chunk.times))

    def _until(self) -> int:
        """Up to which row it is judged by this reference."""
        return self._since + 2 * self._grown if self._grown < self._size else 2**62

    def _went_by(self, chunk: Chunk) -> None:
        """Keep those rows that may become a part of the reference."""
        room = self._since + self._size - self._at if self._grown < self._size or self._at < self._start else 0
        if room > 0 and not self._keep:
            self._behind.append(chunk.part(0, room).cells)
        self._at += len(chunk.times)

    def _alarmed(self) -> None:
        self._since, self._grown = self._at, min(self._size, _FIRST_BASELINE)
        self._start = self._since + self._grown
        self._governing = self._governor.build()
        self._monitor, self._behind = None, []

    def _grow(self) -> None:
        """A reference that still grows is taken anew once there are twice as many rows."""
        if self._at == self._until():
            self._start, self._grown = self._at, min(self._size, 2 * self._grown)
            self._monitor = None

    def _judged(self, chunk: Chunk) -> Iterator[tuple[Verdict, Decision | None]]:
        monitor = self._ready()
        cells = [chunk.cells[column.name] for column in monitor.reference.columns]
        rows = Rows.of(monitor.reference.columns, cells, np.arange(self._at, self._at + len(chunk.times)), chunk.times)
        for verdict in monitor.take(rows):
            began = monitor.drift_began(verdict) if verdict.drift else verdict.window
            decision = self._governing.judge(verdict, began)
            if decision is not None and decision.action != "hold":
                decision = monitor.explained(decision)
            yield verdict, decision

    def _ready(self) -> Monitor:
        if self._monitor is None:
            began = time.perf_counter()
            if self._behind:
                joined = {name: np.concatenate([cells[name] for cells in self._behind]) for name in self._sample}
                self._behind = [joined]
                self._sample = {name: cells[: self._grown] for name, cells in joined.items()}
                if self._grown == self._size:
                    self._behind = []
            self._monitor = Monitor(self._spec, prepare(MODEL, "1", self._schema, self._sample), 0)
            self.calibration_seconds += time.perf_counter() - began
        return self._monitor

    def state(self) -> dict[str, Any]:
        """All that what comes depends on, as plain values."""
        return {
            "places": [self._at, self._since, self._grown, self._start],
            "sample": _plain([self._sample]),
            "behind": _plain(self._behind),
            "governor": self._governing.state(),
            "monitor": self._monitor.state() if self._monitor else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave with the same spec and schema; ValueError or KeyError when it gave no such thing."""
        self._at, self._since, self._grown, self._start = map(int, state["places"])
        numeric = {feature.name: feature.kind == "numeric" for feature in self._schema.features}
        numeric["prediction"] = self._schema.prediction == "numeric"
        self._sample = _cells(state["sample"], numeric)
        behind = _cells(state["behind"], numeric)
        self._behind = [behind] if behind else []
        self._governing.restore(state["governor"])
        if state["monitor"] is not None:
            waiting, self._behind = self._behind, []
            self._ready().restore(state["monitor"])
            self._behind = waiting


def _plain(pieces: Sequence[Cells]) -> dict[str, Any]:
    if not pieces:
        return {}
    return {name: as_plain(np.concatenate([cells[name] for cells in pieces])) for name in pieces[0]}


def _cells(stored: Mapping[str, Any], numeric: Mapping[str, bool]) -> dict[str, Values]:
    cells: dict[str, Values] = {}
    for name, plain in stored.items():
        dtype = np.dtype(np.float64) if numeric[name] else np.dtype(object)
        rows = len(plain) // dtype.itemsize if numeric[name] else len(plain)
        cells[name] = from_plain(plain, dtype, rows)
    return cells


class TableRide:
    """A table's rows through the configured setting and all that are tried; the tallies are in the same order."""

    def __init__(
        self,
        specs: Sequence[MonitorSpec],
        schema: Schema,
        sample: Cells,
        *,
        keep_reference: bool = False,
        timed: bool = False,
        drifts: Sequence[KnownDrift] = (),
        injections: Sequence[Injection] = (),
    ) -> None:
        self._reference = prepare(MODEL, "1", schema, sample)
        for injection in injections:
            injection.check(self._reference)
        self._injections = injections
        self.course = Course([*drifts, *(injection.drift for injection in injections)], timed=timed)
        self._judging: list[TableJudging | None] = [TableJudging(spec, schema, sample, keep_reference=keep_reference) for spec in specs]
        self.tallies = [Tally(MODEL, self.course, full=not number, by_row=True) for number in range(len(specs))]

    @property
    def calibration_seconds(self) -> float:
        return sum(judging.calibration_seconds for judging in self._judging if judging)

    def feed(self, chunk: Chunk) -> list[Decision]:
        """The decisions of the configured setting that act."""
        chunk = self._injected(chunk)
        self.course.passed(chunk.times)
        acting = []
        for place, (judging, tally) in enumerate(zip(self._judging, self.tallies, strict=True)):
            if judging is None:
                continue
            try:
                acting += self._judged(judging, tally, chunk)
            except SettingsError as error:
                if tally.full:
                    raise
                self._judging[place] = None
                tally.note(f"{MODEL} cannot be judged so: {error}")
        return acting

    def _judged(self, judging: TableJudging, tally: Tally, chunk: Chunk) -> list[Decision]:
        acting = []
        for verdict, decision in judging.take(chunk):
            event = verdict.fell.offset + 1
            tally.judged(verdict, event, judging.governing)
            if decision is not None:
                tally.decided(decision, event, judging.reference if tally.full else None)
                if tally.full and decision.action != "hold":
                    acting.append(decision)
        return acting

    def _injected(self, chunk: Chunk) -> Chunk:
        if not self._injections:
            return chunk
        columns = self._reference.columns
        rows = Rows.of(columns, [chunk.cells[column.name] for column in columns], np.arange(len(chunk.times)), chunk.times)
        rows = injected(rows, self._reference, self._injections, self.course.rows)
        return Chunk({column.name: cells for column, cells in zip(columns, rows.cells, strict=True)}, chunk.times)

    def state(self) -> dict[str, Any]:
        return {
            "judging": [judging.state() if judging else None for judging in self._judging],
            "course": self.course.state(),
            "tallies": [tally.state() for tally in self.tallies],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, on one with the same settings that was fed nothing yet; SnapshotError: it gave no such thing."""
        try:
            for place, (judging, memory) in enumerate(zip(self._judging, state["judging"], strict=True)):
                if memory is None:
                    self._judging[place] = None
                elif judging is not None:
                    judging.restore(memory)
            for tally, memory in zip(self.tallies, state["tallies"], strict=True):
                tally.restore(memory)
            self.course.restore(state["course"])
        except (KeyError, ValueError, TypeError) as error:
            raise SnapshotError(f"the state of this replay cannot be gone on from: {error!r}") from error
