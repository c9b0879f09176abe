"""Limits: what a window may not go over. A limit is a frozen spec; `build` makes the object that judges.

Two kinds: Evidently's tests over the window against the reference, and online detectors (river's) fed event by event
with each value's rank in the reference, so that no detector depends on a feature's scale.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel

from inference.errors import SettingsError, SnapshotError
from streaming.core import statistics
from streaming.core.reference import Column, Reference, Values
from streaming.core.verdict import Finding
from streaming.core.window import SlidingWindow


class Detector(Protocol):
    """An online change detector of one signal."""

    def feed(self, values: Sequence[float]) -> list[int]:
        """Take the next finite values; the places among them at which a change is detected (the detector then starts anew by itself)."""
        ...

    def state(self) -> bytes:
        """All that its next answers depend on."""
        ...

    def restore(self, state: bytes) -> None:
        """Go on from what `state` of a detector of the same settings gave; SnapshotError when it can't, and nothing changed."""
        ...


class Judge(Protocol):
    """A built limit of one monitor. `observe` gets every row once, in order; `judge` is called at each full slide."""

    def observe(self, columns: Sequence[Values]) -> None:
        """New rows, one array per column of the reference, in its order."""
        ...

    def judge(self, window: SlidingWindow) -> tuple[list[Finding], bool]:
        """The findings on the window as it stands, and whether the limit is breached."""
        ...

    def state(self) -> dict[str, Any]:
        """Its memory as plain values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> str:
        """Go on from what `state` of a judge of the same limit gave, on one that has observed nothing yet.

        Says what had to start anew nevertheless, and why; "" when nothing had to. ValueError: this is no such state.
        """
        ...


class Limit(Protocol):
    """A frozen limit; SettingsError from `build` when it does not fit the reference."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """All of its settings as text, the same in every process: the memory of a limit with another text does not fit it."""
        ...

    def build(self, reference: Reference, size: int) -> Judge:
        """A judge with no memory yet, for windows of `size` rows."""
        ...


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
        return EvidentlyJudge(self, _chosen(self.name, reference, self.columns, self._takes))

    def _takes(self, column: Column) -> bool:
        return self.test == "auto" or column.kind in statistics.ALLOWED_KINDS[self.test]


class EvidentlyJudge:
    """Keeps nothing between windows: each is measured anew against the reference."""

    def __init__(self, limit: EvidentlyLimit, columns: Sequence[tuple[int, Column]]) -> None:
        self._limit = limit
        self._columns = columns

    def observe(self, columns: Sequence[Values]) -> None:
        return

    def judge(self, window: SlidingWindow) -> tuple[list[Finding], bool]:
        findings = [self._measure(column, window.values(index)) for index, column in self._columns]
        drifting = sum(finding.over for finding in findings)
        share = self._limit.share
        return findings, drifting > 0 if share is None else drifting >= share * len(findings)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> str:
        return ""

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
        threshold = statistics.DEFAULT_THRESHOLDS[chosen] if limit.threshold is None else limit.threshold
        score = statistics.measure(chosen, column, known)
        unknown = "" if score == score else "the test is not defined on these values"
        return Finding(limit.name, column.name, chosen, score, threshold, statistics.over(chosen, score, threshold), unknown)


@dataclass(frozen=True, slots=True)
class DetectorLimit:
    """An online detector on each column's rank in the reference, and on the rank's distance from the middle.

    The first sees shifts, the second changes of spread. A detection counts until `size` rows have passed (a detector
    fires once and starts anew, a window shows the change for `size` rows). `make` gets the signal's number (a seed) and how many
    signals share the limit's budget. `settings` tells as text what `make` makes: another text is another detector.
    """

    name: str
    kind: str
    make: Callable[[int, int], Detector]
    columns: tuple[str, ...] | None = None
    settings: str = ""

    @property
    def fingerprint(self) -> str:
        return repr(("detector", self.name, self.kind, self.columns, self.settings))

    def build(self, reference: Reference, size: int) -> "DetectorJudge":
        return DetectorJudge(self, _chosen(self.name, reference, self.columns, lambda column: column.n > 0), size)


class _DetectorState(BaseModel):
    rows: int
    detected: list[list[int]]
    broken: list[str]
    detectors: list[bytes]


class DetectorJudge:
    """Two detectors per column; missing values are left out."""

    def __init__(self, limit: DetectorLimit, columns: Sequence[tuple[int, Column]], size: int) -> None:
        self._limit = limit
        self._columns = columns
        self._size = size
        self._rows = 0
        self._detectors = self._anew()
        self._detected: list[list[int]] = [[] for _ in columns]
        self._broken: list[str] = ["" for _ in columns]

    def observe(self, columns: Sequence[Values]) -> None:
        for number, (index, column) in enumerate(self._columns):
            if self._broken[number]:
                continue
            try:
                self._feed(number, column.ranks(columns[index]))
            except Exception as error:  # noqa: BLE001 - a broken detector is a finding "unknown", never silence or a crash
                self._broken[number] = f"the detector failed: {error!r}"
                # How much it had told of this stretch depends on where the stretch was cut.
                self._detected[number] = []
        self._rows += len(columns[0])

    def _feed(self, number: int, ranks: Values) -> None:
        level, spread = self._detectors[number]
        places = np.flatnonzero(~np.isnan(ranks))
        known = ranks[places]
        # Both see every value: a detection by one must not starve the other.
        detected = {*level.feed(known.tolist()), *spread.feed(np.abs(2.0 * known - 1.0).tolist())}
        self._detected[number] += [self._rows + int(places[place]) for place in sorted(detected)]

    def judge(self, window: SlidingWindow) -> tuple[list[Finding], bool]:
        findings = []
        for number, (_, column) in enumerate(self._columns):
            recent = [row for row in self._detected[number] if row >= self._rows - self._size]
            self._detected[number] = recent
            unknown = self._broken[number]
            score = float("nan") if unknown else float(len(recent))
            findings.append(Finding(self._limit.name, column.name, self._limit.kind, score, 1.0, bool(recent), unknown))
        return findings, any(finding.over for finding in findings)

    def state(self) -> dict[str, Any]:
        # A broken detector is never fed again: what it remembers is of no use, and it may not be able to say it.
        states = [
            [b"", b""] if broken else [one.state() for one in pair] for pair, broken in zip(self._detectors, self._broken, strict=True)
        ]
        return {
            "rows": self._rows,
            "detected": [list(rows) for rows in self._detected],
            "broken": list(self._broken),
            "detectors": [*chain.from_iterable(states)],
        }

    def restore(self, state: Mapping[str, Any]) -> str:
        known = _DetectorState.model_validate(state)
        if not 2 * len(self._columns) == 2 * len(known.detected) == 2 * len(known.broken) == len(known.detectors):
            raise ValueError(f"a memory of {len(known.detected)} columns for {len(self._columns)}")
        self._rows, self._detected, self._broken = known.rows, known.detected, known.broken
        try:
            for detector, memory in zip(chain.from_iterable(self._detectors), known.detectors, strict=True):
                if memory:
                    detector.restore(memory)
        except SnapshotError as error:
            self._detectors = self._anew()
            self._broken = ["" for _ in self._columns]
            return f"the detectors of limit {self._limit.name!r} start anew: {error}"
        return ""

    def _anew(self) -> list[tuple[Detector, Detector]]:
        make, signals = self._limit.make, 2 * len(self._columns)
        return [(make(2 * number, signals), make(2 * number + 1, signals)) for number in range(len(self._columns))]


def _chosen(limit: str, reference: Reference, wanted: tuple[str, ...] | None, takes: Callable[[Column], bool]) -> list[tuple[int, Column]]:
    indexed = list(enumerate(reference.columns))
    if wanted is not None:
        names = [column.name for column in reference.columns]
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise SettingsError([f"limit {limit!r}: no such column {', '.join(unknown)}; {reference.model} has {', '.join(names)}"])
        unfit = [column.name for _, column in indexed if column.name in wanted and not takes(column)]
        if unfit:
            raise SettingsError([f"limit {limit!r}: this test cannot take {', '.join(unfit)}; leave them out or choose another test"])
        indexed = [(index, column) for index, column in indexed if column.name in wanted]
    chosen = [(index, column) for index, column in indexed if takes(column)]
    if not chosen:
        raise SettingsError([f"limit {limit!r}: no column of {reference.model} that this test can take"])
    return chosen


def drift_began(window: SlidingWindow, reference: Reference, findings: Sequence[Finding]) -> int:
    """The row of the window (0 = oldest) at which the change most likely began.

    The maximum-likelihood change point of a shift of known size: over the drifting columns' ranks, the last minimum of the
    cumulated sum of (deviation from 1/2, towards the change) minus half of its size in the newest quarter of the window
    (Page 1954). 0 when the whole window lies behind the change, or nothing drifts.
    """
    drifting = {finding.feature for finding in findings if finding.over}
    evidence = np.zeros(window.spec.size)
    for index, column in enumerate(reference.columns):
        if column.name in drifting:
            deviations = np.nan_to_num(column.ranks(window.values(index)) - 0.5)
            newest = float(deviations[-max(1, len(deviations) // 4) :].mean())
            evidence += deviations * np.sign(newest) - abs(newest) / 2.0
    before = np.concatenate([[0.0], np.cumsum(evidence)[:-1]])
    return int(len(before) - 1 - np.argmin(before[::-1]))
