"""One window of a model, over the whole stream or one segment of it, and the limits that judge it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from streaming.core.explanation import explain
from streaming.core.limits import Limit
from streaming.core.onset import drift_began
from streaming.core.reference import Reference
from streaming.core.segments import Segment
from streaming.core.time_window import TimedWindow, TimeWindow
from streaming.core.verdict import Explanation, Finding, Span, Verdict
from streaming.core.watermark import Lateness, Released
from streaming.core.window import CountedWindow, CountWindow, Rows, SlidingWindow

Window = CountWindow | TimeWindow
_STRETCH = 4096
"""Rows of a stretch of time that are judged at once."""


@dataclass(frozen=True, slots=True)
class View:
    """A window by its name ("" for a model's only one), and the limits that judge it: any one breached is drift."""

    name: str
    window: Window
    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        names = [limit.name for limit in self.limits]
        if not names:
            raise ValueError(f"window {self.name!r} needs at least one limit" if self.name else "a model needs at least one limit")
        if len(set(names)) != len(names):
            raise ValueError(f"limits need different names, not {', '.join(names)}")

    @property
    def fingerprint(self) -> tuple[object, ...]:
        """All of its settings, the same in every process."""
        return *self.window.settings, [limit.fingerprint for limit in self.limits]

    def build(self, reference: Reference, segment: Segment | None, counts: Counter[str]) -> "CountView | TimeView":
        """With no memory yet; SettingsError when a limit does not fit the reference."""
        if isinstance(self.window, TimeWindow):
            return TimeView(self, self.window.build(reference.columns), reference, segment, counts)
        return CountView(self, self.window.build(reference.columns), reference, segment)


class Judged(NamedTuple):
    """What a view says after a row of the batch, number `place` (from 0), before it is a verdict.

    `seen` rows were put into the window so far; `boundary` is the slide of event time that it is of, None for one of a row.
    """

    place: int
    seen: int
    findings: tuple[Finding, ...]
    breached: tuple[str, ...]
    boundary: float | None = None


class _State(BaseModel):
    window: dict[str, Any]
    limits: list[dict[str, Any]]


class BuiltView:
    """What all views have: a window, the judges of the limits, and their memory."""

    def __init__(self, view: View, window: SlidingWindow, reference: Reference, segment: Segment | None) -> None:
        self.name = view.name
        self.segment = segment.name if segment else ""
        self.window = window
        self._segment = segment
        self._reference = reference
        self._limits = [(limit.name, limit.build(reference, view.window.size)) for limit in view.limits]

    def _judge(self, called: Sequence[bool], place: int, boundary: float | None = None) -> Judged:
        """By the limits that are called upon: all of them at a slide, else those that asked for it."""
        findings, breached = [], []
        for name, judge in compress(self._limits, called):
            found, over = judge.judge(self.window)
            findings += found
            if over:
                breached.append(name)
        return Judged(place, self.window.rows, tuple(findings), tuple(breached), boundary)

    def began(self, verdict: Verdict) -> Span:
        """Where the drift of its newest verdict most likely began, to the window's end."""
        told = [judge.began(self.window) for name, judge in self._limits if name in verdict.breached]
        first = min((place for place in told if place is not None), default=None)
        first = drift_began(self.window, self._reference, verdict.findings) if first is None else first
        return self.window.span(verdict.window.partition, first)

    def explained(self, verdict: Verdict, began: Span) -> tuple[tuple[Explanation, ...], int]:
        """What is behind its newest verdict, and how many findings there are beside."""
        return explain(self._reference, self.window, verdict.findings, verdict.breached, began)

    def state(self) -> dict[str, Any]:
        return {"window": self.window.state(), "limits": [judge.state() for _, judge in self._limits]}

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        """Go on from what `state` gave; what starts anew nevertheless. ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        self.window.restore(known.window)
        told = [judge.restore(memory) for (_, judge), memory in zip(self._limits, known.limits, strict=True)]
        return [reason for reason in told if reason]

    def status(self) -> dict[str, Any]:
        return {"window": self.name, "segment": self.segment, "predictions": self.window.rows, "in_window": len(self.window)}


class CountView(BuiltView):
    """A window of rows as they arrive. A verdict falls due at each slide of a full window, and where a limit asks for one."""

    window: CountedWindow

    def take(self, rows: Rows) -> Iterator[Judged]:
        """The next rows of the model's stream; each verdict's place and window are as of its row."""
        places: NDArray[np.int64] | None = None
        if self._segment is not None:
            places = self._segment.places(rows)
            rows = self._segment.own(rows.pick(places))
        start = 0
        while start < len(rows):
            until = min(len(rows), start + self.window.until_due)
            stretch = rows if until - start == len(rows) else rows.part(start, until)
            asked = [frozenset(judge.observe(stretch)) for _, judge in self._limits]
            done = 0
            for stop in sorted({len(stretch)}.union(*asked)):
                self.window.put(stretch if stop - done == len(stretch) else stretch.part(done, stop))
                done = stop
                due = self.window.due
                called = [due or stop in rows for rows in asked]
                if any(called):
                    last = start + stop - 1
                    yield self._judge(called, last if places is None else int(places[last]))
            start += done


class _Pending(BaseModel):
    boundary: float | None


class TimeView(BuiltView):
    """A window of rows in order of event time. A verdict falls due at each slide that the watermark passes and that a row came before,
    and where a limit asks for one, as soon as its row is released."""

    window: TimedWindow

    def __init__(self, view: View, window: TimedWindow, reference: Reference, segment: Segment | None, counts: Counter[str]) -> None:
        super().__init__(view, window, reference, segment)
        self.lateness = Lateness(window.spec.lateness, window.spec.max_rows, window.spec.ahead)
        self._counts = counts
        self._boundary: float | None = None

    def take(self, released: Sequence[Released]) -> Iterator[Judged]:
        """What the model's next rows released; the places of verdicts are those of the rows that released them."""
        for piece in released:
            rows, places = piece.rows, piece.places
            if self._segment is not None:
                own = self._segment.places(rows)
                rows, places = self._segment.own(rows.pick(own)), places[own]
            bounds = self.window.spec.boundaries(rows.when)
            edges = [0, *(np.flatnonzero(np.diff(bounds)) + 1).tolist(), len(rows)]
            for start, stop in pairwise(edges):
                if start == stop:
                    continue
                if self._boundary is not None and bounds[start] > self._boundary:
                    yield from self._slide(piece)
                self._boundary = float(bounds[start])
                for first in range(start, stop, _STRETCH):
                    last = min(stop, first + _STRETCH)
                    yield from self._put(rows.part(first, last), places[first:last])
            if self._boundary is not None and self._boundary <= piece.watermarks[-1]:
                yield from self._slide(piece)

    def _put(self, rows: Rows, places: NDArray[np.int64]) -> Iterator[Judged]:
        since, crowded = self.window.reach(rows)
        if crowded:
            self._counts["crowded_out"] += crowded
        rows = replace(rows, since=since)
        asked = [frozenset(judge.observe(rows)) for _, judge in self._limits]
        done = 0
        for stop in sorted({len(rows)}.union(*asked)):
            self.window.put(rows.part(done, stop))
            done = stop
            called = [stop in rows for rows in asked]
            if any(called):
                yield self._judge(called, int(places[stop - 1]))

    def _slide(self, piece: Released) -> Iterator[Judged]:
        """The verdict of the slide that waits, if there are rows enough."""
        boundary, self._boundary = self._boundary, None
        assert boundary is not None
        self.window.look(boundary)
        if len(self.window) < self.window.spec.min_rows:
            self._counts["few_rows"] += 1
            return
        place = piece.start + min(int(piece.watermarks.searchsorted(boundary)), len(piece.watermarks) - 1)
        yield self._judge([True] * len(self._limits), place, boundary)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "boundary": self._boundary}

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        self._boundary = _Pending.model_validate(state).boundary
        return super().restore(state)
