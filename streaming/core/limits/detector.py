"""Online change detectors, river's, on each value's rank in the reference, so that none depends on a feature's scale."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from pydantic import BaseModel

from inference.errors import SnapshotError
from streaming.core.limits.seam import Detector, chosen_columns
from streaming.core.reference import Column, Reference, Values
from streaming.core.verdict import Finding
from streaming.core.window import Rows, SlidingWindow


@dataclass(frozen=True, slots=True)
class DetectorLimit:
    """An online detector on each column's rank in the reference, and on the rank's distance from the middle.

    The first sees shifts, the second changes of spread. A detection counts as long as its row is in the window (a detector
    fires once and starts anew). `make` gets the signal's number (a seed) and how many
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
        return DetectorJudge(self, chosen_columns(self.name, reference, self.columns, lambda column: column.n > 0))


class _DetectorState(BaseModel):
    rows: int
    detected: list[list[int]]
    broken: list[str]
    detectors: list[bytes]


class DetectorJudge:
    """Two detectors per column; missing values are left out."""

    def __init__(self, limit: DetectorLimit, columns: Sequence[tuple[int, Column]]) -> None:
        self._limit = limit
        self._columns = columns
        self._rows = 0
        self._detectors = self._anew()
        self._detected: list[list[int]] = [[] for _ in columns]
        self._broken: list[str] = ["" for _ in columns]

    def observe(self, rows: Rows) -> Sequence[int]:
        for number, (index, column) in enumerate(self._columns):
            if self._broken[number]:
                continue
            try:
                self._feed(number, column.ranks(rows.codes[index]))
            except Exception as error:  # noqa: BLE001 - a broken detector is a finding "unknown", never silence or a crash
                self._broken[number] = f"the detector failed: {error!r}"
                # How much it had told of this stretch depends on where the stretch was cut.
                self._detected[number] = []
        self._rows += len(rows)
        if rows.since is not None and len(rows):
            # A window of time with few rows may not be judged for long.
            self._detected = [[row for row in places if row >= rows.since[-1]] for places in self._detected]
        return ()

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
            recent = [row for row in self._detected[number] if row >= window.rows - len(window)]
            self._detected[number] = recent
            unknown = self._broken[number]
            score = float("nan") if unknown else float(len(recent))
            findings.append(Finding(self._limit.name, column.name, self._limit.kind, score, 1.0, bool(recent), unknown))
        return findings, any(finding.over for finding in findings)

    def began(self, window: SlidingWindow) -> int | None:
        return None

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
