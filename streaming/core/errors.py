"""Concept drift: the errors that labels show, fed to a detector in the order in which the labels stand on the log."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat

from inference.errors import SnapshotError
from streaming.core.labels import Joined
from streaming.core.limits import Detector
from streaming.core.made import Learned
from streaming.core.rates import Count, Rates
from streaming.core.verdict import Explanation, Finding, Moved, Place

NAME = "errors"
"""The limit's name, and that of the window its verdicts are of."""

FIRST = 200
"""Errors of a numeric prediction that the others are ranked among."""

_BAD = 0.9
"""A numeric prediction's rank from which a detector of right and wrong is told that it is wrong."""

_LARGEST = 1e150
"""What a larger error counts as: sums of millions of them are still numbers."""


class ErrorDetector(Detector, Protocol):
    """An online detector of values from 0 to 1."""

    @property
    def changed(self) -> tuple[int, float] | None:
        """Right after a detection: how many of the newest values are behind the change, and their mean; None when it can't tell."""
        ...


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """The error of labelled predictions may not rise.

    An error is 0 or 1 where categories are predicted. Where numbers are, it is the rank of the absolute error among the version's first
    200, from 0 to 1: free of scales, deaf to outliers; until there are 200, nothing is judged; a detector that is `binary` gets 1 for a
    rank of 0.9 or more, else 0.

    Judged each `slide` labelled errors, and where the detector tells of a rise. A rise counts as over for `size` labelled errors, and on
    until the mean of the newest `size` is within one standard error of what it was before. `kind` names the detector, `make` makes it,
    `settings` tells as text what it makes. `max_waiting` and `max_age` bound the memory of predictions: rows, seconds of log time.
    """

    kind: str
    make: Callable[[], ErrorDetector]
    settings: str = ""
    binary: bool = False
    size: int = 500
    slide: int = 50
    max_waiting: int = 100_000
    max_age: float = 7 * 86_400.0

    def __post_init__(self) -> None:
        if not 1 <= self.slide <= self.size:
            raise ValueError(f"errors.slide must be from 1 to errors.size ({self.size}), not {self.slide}")
        if self.max_waiting < 1 or not self.max_age > 0:
            raise ValueError(f"errors.max_waiting ({self.max_waiting}) and errors.max_age ({self.max_age}) must be above 0")

    @property
    def fingerprint(self) -> str:
        """What its memory depends on, the same in every process."""
        return repr(("errors", self.kind, self.settings, self.size, self.slide))


class _Told(NamedTuple):
    """What the detector was told, and where on the log the prediction stands."""

    value: float
    offset: int
    time: float


class _State(BaseModel):
    rates: dict[str, Any]
    first: list[tuple[FiniteFloat, Count, FiniteFloat]]
    told: list[tuple[float, Count, FiniteFloat]]
    fed: Count
    since: Count
    sum: FiniteFloat
    before: float | None = Field(ge=0, le=1)
    changed: Count
    detected: Count
    began: tuple[Count, FiniteFloat]
    broken: str
    detector: bytes


class ErrorJudge:
    """The labelled errors of one version. Memory: the newest `size` of them, the detector's, and 200 of a numeric prediction."""

    def __init__(self, limit: ErrorLimit, target: str, *, numeric: bool) -> None:
        self._limit = limit
        self._target = target
        self._numeric = numeric
        self._detector = limit.make()
        self.rates = Rates(limit.size)
        self._first: list[_Told] = []
        self._ordered = np.empty(0)
        self._told: deque[_Told] = deque(maxlen=limit.size)
        self._fed = 0
        # Of what the detector was told since it began anew: how many, and their sum.
        self._since, self._sum = 0, 0.0
        self._before: float | None = None
        # How many were told since the change that is over, and at which of all it was detected last.
        self._changed, self._last = 0, 0
        self._began = (0, 0.0)
        self._broken = ""

    @property
    def over(self) -> bool:
        return self._before is not None

    @property
    def began(self) -> Place:
        """The prediction with which what is over began."""
        return Place(*self._began)

    @property
    def oldest(self) -> Place:
        """The oldest prediction among those that are judged."""
        return Place(*min((one.offset, one.time) for one in self._told))

    def explanation(self, finding: Finding) -> Explanation:
        """What is behind a finding that is over."""
        moved = Moved("rank of the error" if self._numeric else "error", self._before, finding.score)
        rows, earlier = min(self._changed, len(self._told)), self._changed > len(self._told)
        return Explanation(*finding[:3], finding.signal, finding.score, finding.threshold, "up", (moved,), self.began, rows, earlier, 1.0)

    def take(self, joined: Joined, counts: Counter[str]) -> bool:
        """A prediction's labels, each row's outcome counted; whether a judgement falls due."""
        made, learned = joined.made, joined.learned
        if joined.first:
            self.rates.late(joined.lag)
        slides, rose = self._fed // self._limit.slide, False
        for row, truth in enumerate(joined.truths):
            outcome = self._row(made.values[row], learned, row, truth)
            counts[outcome] += 1
            if outcome in ("labelled", "corrected"):
                rose = self._feed(_Told(learned.errors[row], made.offset, made.time)) or rose
        return rose or self._fed // self._limit.slide > slides

    def _row(self, prediction: Any, learned: Learned, row: int, truth: Any) -> str:
        if truth is None:
            return "rows_without_label"
        error = _error(prediction, truth) if self._numeric else _differs(prediction, truth)
        if error is None:
            return "rows_of_wrong_kind"
        number, known = learned.numbers[row], learned.errors[row]
        learned.errors[row] = error
        if number < 0:
            learned.numbers[row] = self.rates.add(error)
            return "labelled"
        if error == known:
            return "duplicates"
        # A detector can't unlearn: to it the correction is one more value. The rates are put right.
        self.rates.correct(number, known, error)
        return "corrected"

    def _feed(self, error: _Told) -> bool:
        """Whether the error has risen."""
        if not self._numeric:
            return self._tell(error)
        if len(self._first) == FIRST:
            return self._tell(self._ranked(error))
        self._first.append(error)
        if len(self._first) < FIRST:
            return False
        self._ordered = np.sort([one.value for one in self._first])
        return sum([self._tell(self._ranked(one)) for one in self._first]) > 0

    def _ranked(self, error: _Told) -> _Told:
        rank = float(self._ordered.searchsorted(error.value, "left") + self._ordered.searchsorted(error.value, "right")) / (2 * FIRST)
        return error._replace(value=float(rank >= _BAD) if self._limit.binary else rank)

    def _tell(self, error: _Told) -> bool:
        self._told.append(error)
        self._fed += 1
        self._changed += self.over
        self._since += 1
        self._sum += error.value
        if self._broken:
            return False
        try:
            detected = bool(self._detector.feed([error.value]))
        except Exception as failed:  # noqa: BLE001 - a broken detector is a finding "unknown", never silence or a crash
            self._broken = f"the detector failed: {failed!r}"
            return False
        return detected and self._detected()

    def _detected(self) -> bool:
        """Take in a change; whether it is a rise. While a rise is over, what was before it stays what it is measured by."""
        told = self._detector.changed
        if told is None or told[1] > self._earlier(*told):
            count, mean = self._parted(told)
            before = self._earlier(count, mean)
        else:
            count, mean, before = 0, 0.0, 0.0
        self._since, self._sum = 0, 0.0
        if mean <= before:
            return False
        self._last = self._fed
        if self._before is None:
            self._before, self._changed = before, count
            places = sorted((one.offset, one.time) for one in [*self._told][-count:])
            # Not the very first: labels of much older predictions come in between.
            self._began = places[len(places) // 10]
        return True

    def _earlier(self, count: int, mean: float) -> float:
        """The mean, since the detector began, of what came before the newest `count` with this mean."""
        return min(1.0, max(0.0, (self._sum - count * mean) / max(1, self._since - count)))

    def _parted(self, told: tuple[int, float] | None) -> tuple[int, float]:
        """Where the errors since the detector began part best into lower ones and then higher ones: how many are behind it, their mean.

        Of all places among the newest `size`, and the detector's own, the one with the largest sum of squares between the two parts.
        ADWIN's own lies before the change: it lets go only of what must go.
        """
        values = np.array([one.value for one in self._told])[::-1][: max(1, self._since - 1)]
        counts, means = np.arange(1, len(values) + 1), np.cumsum(values) / np.arange(1, len(values) + 1)
        if told is not None:
            counts, means = np.append(counts, told[0]), np.append(means, told[1])
        earlier = np.maximum(self._since - counts, 1)
        risen = np.maximum(means - (self._sum - counts * means) / earlier, 0.0)
        best = int(np.argmax(counts * earlier / (counts + earlier) * risen**2))
        return int(counts[best]), float(means[best])

    def judge(self) -> Finding:
        """The finding after the newest label; what was over and is gone is over no longer.

        `score` is the mean error since the change, of the newest `size` at most; `threshold` what it was before, NaN where nothing is over.
        """
        nothing = float("nan")
        if self._broken:
            return Finding(NAME, self._target, self._limit.kind, nothing, nothing, False, self._broken)
        newest = [one.value for one in self._told]
        if self._before is None:
            return Finding(NAME, self._target, self._limit.kind, sum(newest) / len(newest), nothing, False)
        newest, before, size = newest[-self._changed :], self._before, self._limit.size
        level, mean = max(before, 1.0 / size), sum(newest) / len(newest)
        if self._fed - self._last >= size and mean <= before + sqrt(level * (1.0 - level) / size):
            self._before, self._changed = None, 0
            return Finding(NAME, self._target, self._limit.kind, mean, nothing, False)
        signal = f"{'rank of the error' if self._numeric else 'error'} up {before:.2g} -> {mean:.2g}"
        return Finding(NAME, self._target, self._limit.kind, mean, before, True, "", signal)

    def status(self) -> dict[str, Any]:
        """Rates, lags and what the detector says, as plain JSON values."""
        return {**self.rates.status(), "detector": self._limit.kind, "over": self.over, "unknown": self._broken}

    def state(self) -> dict[str, Any]:
        """Its memory as plain values."""
        return {
            "rates": self.rates.state(),
            "first": [list(one) for one in self._first],
            "told": [list(one) for one in self._told],
            "fed": self._fed,
            "since": self._since,
            "sum": self._sum,
            "before": self._before,
            "changed": self._changed,
            "detected": self._last,
            "began": list(self._began),
            "broken": self._broken,
            "detector": b"" if self._broken else self._detector.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> str:
        """Go on from what `state` gave; says what starts anew nevertheless, and why. ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        too_many = len(known.first) > FIRST or len(known.told) > min(known.fed, self._limit.size)
        if too_many or not all(0.0 <= one[0] <= 1.0 for one in known.told):
            raise ValueError(f"{len(known.first)} first errors and {len(known.told)} that the detector was told")
        over = known.before is not None
        if bool(known.fed) != bool(known.told) or max(known.since, known.detected) > known.fed or over != bool(known.changed):
            raise ValueError("a change among errors that are not there")
        self.rates.restore(known.rates)
        self._first = [_Told(*one) for one in known.first]
        self._ordered = np.sort([one.value for one in self._first])
        self._told.extend(_Told(*one) for one in known.told)
        self._fed, self._since, self._sum = known.fed, known.since, known.sum
        self._before, self._changed, self._last = known.before, known.changed, known.detected
        self._began, self._broken = known.began, known.broken
        try:
            if not known.broken:
                self._detector.restore(known.detector)
        except SnapshotError as error:
            self._since, self._sum = 0, 0.0
            return f"the detector of labelled errors starts anew: {error}"
        return ""


def _differs(prediction: Any, truth: Any) -> float | None:
    return None if prediction is None else float(prediction != truth)


def _error(prediction: Any, truth: Any) -> float | None:
    error = abs(prediction - truth) if prediction is not None else float("nan")
    return min(error, _LARGEST) if error == error else None
