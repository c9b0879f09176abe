"""A budget of false alarms: the default limit, kept by a CUSUM of ranks that judges after every prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, FiniteFloat, NonNegativeInt

from streaming.core.cusum.calibration import calibrate
from streaming.core.cusum.recursion import BLOCK, accumulate, blocks
from streaming.core.cusum.signals import Signals
from streaming.core.limits.seam import chosen_columns
from streaming.core.reference import Floats, Reference
from streaming.core.verdict import Finding
from streaming.core.window import Rows, SlidingWindow

_PER_SECOND = 1_000_000 / 86_400
_FEWEST, _MOST = 2.0**10, 2.0**50


@dataclass(frozen=True, slots=True)
class BudgetLimit:
    """One false alarm in `events` predictions, or in `seconds` of log time, of a model whose data do not change.

    It is for all columns, pairs and looks together; give one of the two and None for the other. `columns` None: every column, the
    prediction among them. An alarm counts as long as its prediction is in the window, or a later one of the same column or pair.
    With `seconds` the limits follow the rate of predictions, as the log's times tell it: by powers of two, looked at when their number has
    doubled; until the first window is full they are those of a million predictions a day.
    """

    name: str
    events: float | None = 100_000.0
    seconds: float | None = None
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.events is None) == (self.seconds is None):
            raise ValueError("a budget is so many events, or so many seconds: give one of the two")
        if not (self.events or self.seconds or 0.0) >= 1.0:
            raise ValueError(f"a budget is at least 1 event or second per false alarm, not {self.events or self.seconds}")

    @property
    def fingerprint(self) -> str:
        return repr(("budget", self.name, self.events, self.seconds, self.columns))

    def build(self, reference: Reference, size: int) -> "BudgetJudge":
        chosen = chosen_columns(self.name, reference, self.columns, lambda column: column.rows > 0)
        return BudgetJudge(self, reference, [number for number, _ in chosen], size)


class _State(BaseModel):
    rows: NonNegativeInt
    began: FiniteFloat
    events: float
    statistics: bytes
    alarms: dict[str, tuple[int, FiniteFloat, int]]


class _Alarm(NamedTuple):
    """After which row a part alarmed last, the statistic in units of its limit, and which statistic."""

    row: int
    score: float
    statistic: int


@dataclass(frozen=True, slots=True)
class _Standing:
    """All statistics after a row in units of their limits, and the last alarm of each part so far."""

    scores: Floats
    alarms: Mapping[int, _Alarm]


class BudgetJudge:
    """The statistics of one version. A part is a column or a pair of them: what can be over the limit, and has a finding.

    A statistic that reaches its limit starts anew at 0. A verdict is asked for when a part comes to alarm, not while it goes on.
    """

    def __init__(self, limit: BudgetLimit, reference: Reference, columns: Sequence[int], size: int) -> None:
        self._limit = limit
        self._size = size
        self._columns = np.array(columns)
        self._signals = Signals([reference.columns[number] for number in columns])
        self._codes = reference.codes[self._columns]
        self._began = 0.0
        self._events = limit.events or _rounded(_PER_SECOND * (limit.seconds or 0.0))
        self._statistics = calibrate(self._signals, self._codes, self._events)
        self._every = [*self._signals.singles, *self._signals.pairs]
        parts = list(dict.fromkeys(signal.columns for signal in self._every))
        self._names = [", ".join(reference.columns[columns[number]].name for number in part) for part in parts]
        self._single = sum(len(part) == 1 for part in parts)
        numbers = {part: number for number, part in enumerate(parts)}
        self._part: NDArray[np.int64] = np.array([numbers[signal.columns] for signal in self._every])[self._statistics.signal]
        self._paired = np.flatnonzero(self._part >= self._single)
        # The statistics of each single part, as a table: filled up with the part's first, which changes nothing.
        of_part = [np.flatnonzero(self._part == part) for part in range(self._single)]
        longest = max((len(places) for places in of_part), default=0)
        self._of_single = np.array([np.append(places, np.repeat(places[:1], longest - len(places))) for places in of_part], dtype=np.int64)
        self._told = [self._tell(statistic) for statistic in range(len(self._part))]
        self._at = np.zeros(len(self._part))
        self._rows = 0
        self._alarms: dict[int, _Alarm] = {}
        self._before = 0
        self._since: NDArray[np.int64] | None = None
        self._asked: dict[int, _Standing] = {}

    def observe(self, rows: Rows) -> Sequence[int]:
        self._asked.clear()
        self._before, self._since = self._rows, rows.since
        before, codes = self._rows, rows.codes[self._columns]
        if not before and len(rows):
            self._began = float(rows.times[0])
        start = 0
        while start < len(rows):
            stop = min(len(rows), start + BLOCK, start + self._until_looked())
            self._take(self._signals.of(codes[:, start:stop]))
            if self._limit.seconds is not None and self._rows >= self._size and self._until_looked() == self._rows:
                self._look(float(rows.times[stop - 1]), self._limit.seconds)
            start = stop
        return [row - before for row in self._asked]

    def _until_looked(self) -> int:
        """Rows until the rate is looked at again: when a window is full, and whenever their number has doubled since."""
        looked = self._size
        while looked <= self._rows:
            looked *= 2
        return looked - self._rows

    def _look(self, now: float, seconds: float) -> None:
        """Take the limits of the rate that the rows came at so far."""
        events = _rounded(self._rows / max(now - self._began, 1e-3) * seconds)
        if events != self._events:
            self._events = events
            self._statistics = calibrate(self._signals, self._codes, events)

    def _take(self, values: Floats) -> None:
        limit = self._statistics.limit
        after = self._statistics.steps(values)
        accumulate(after, self._at)
        if (after.max(axis=0) >= limit).any():
            over = (after >= limit).any(axis=1)
            steps = self._statistics.steps(values)
            while over.any():
                row = int(over.argmax())
                alarming = np.flatnonzero(after[row] >= limit)
                self._alarm(self._rows + row + 1, after[row] / limit, alarming)
                anew = steps[row + 1 :, alarming]
                accumulate(anew, np.zeros(len(alarming)))
                after[row, alarming] = 0.0
                after[row + 1 :, alarming] = anew
                over = (after >= limit).any(axis=1)
        self._at = after[-1].copy()
        self._rows += len(values)

    def _alarm(self, row: int, scores: Floats, alarming: NDArray[np.int64]) -> None:
        """Remember the alarms of these statistics; ask for a verdict if one of their parts was not over."""
        since = row - self._size if self._since is None else int(self._since[row - self._before - 1])
        comes = False
        for statistic in alarming[np.argsort(scores[alarming])].tolist():
            part = int(self._part[statistic])
            comes = comes or not _is_over(self._alarms.get(part), since)
            self._alarms[part] = _Alarm(row, float(scores[statistic]), statistic)
        if comes:
            self._asked[row] = _Standing(scores, dict(self._alarms))

    def judge(self, window: SlidingWindow) -> tuple[list[Finding], bool]:
        row = window.rows
        standing = self._asked.get(row) or _Standing(self._at / self._statistics.limit, self._alarms)
        scores = standing.scores
        over = {part: alarm for part, alarm in standing.alarms.items() if _is_over(alarm, row - len(window))}
        highest = self._highest(scores)
        findings = []
        for part in sorted({*range(self._single), *over, *highest}):
            alarm = over.get(part)
            score, statistic = (alarm.score, alarm.statistic) if alarm else (float(scores[highest[part]]), highest[part])
            told = self._told[statistic]
            findings.append(Finding(self._limit.name, self._names[part], "cusum", score, 1.0, alarm is not None, "", told))
        return findings, bool(over)

    def _highest(self, scores: Floats) -> dict[int, int]:
        """The highest statistic of each column, and of the pair in which it is highest of all pairs."""
        if not self._single:
            return {}
        best = scores.take(self._of_single).argmax(axis=1)
        highest = dict(enumerate(self._of_single[np.arange(self._single), best].tolist()))
        if len(self._paired):
            statistic = int(self._paired[int(scores[self._paired].argmax())])
            highest[int(self._part[statistic])] = statistic
        return highest

    def _tell(self, statistic: int) -> str:
        signal = self._every[self._statistics.signal[statistic]]
        kind = f"category {signal.category!r}" if signal.kind == "category" else signal.kind
        return f"{kind} {'up' if self._statistics.side[statistic] > 0 else 'down'}"

    def began(self, window: SlidingWindow) -> int | None:
        """Where the statistics that alarm last stood at 0, the first of them (Page 1954): the minimum of their cumulated steps."""
        row = window.rows
        standing = self._asked.get(row)
        alarms = [alarm for alarm in (standing.alarms if standing else self._alarms).values() if _is_over(alarm, row - len(window))]
        statistics = self._statistics.part([alarm.statistic for alarm in alarms])
        codes = window.codes[self._columns]
        lowest, began = np.full(len(alarms), np.inf), np.zeros(len(alarms), dtype=np.int64)
        ends = np.array([codes.shape[1] - (row - alarm.row) for alarm in alarms], dtype=np.int64)
        total = np.zeros(len(alarms))
        for start, stop in blocks(codes.shape[1]):
            steps = statistics.steps(self._signals.of(codes[:, start:stop]))
            for place, step in enumerate(steps, start):
                lower = (total <= lowest) & (place < ends)
                lowest[lower], began[lower] = total[lower], place
                total += step
        return int(began.min()) if alarms else None

    def state(self) -> dict[str, Any]:
        return {
            "rows": self._rows,
            "began": self._began,
            "events": self._events,
            "statistics": self._at.astype("<f8").tobytes(),
            "alarms": {str(part): list(alarm) for part, alarm in self._alarms.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> str:
        known = _State.model_validate(state)
        at = np.frombuffer(known.statistics, "<f8").astype(np.float64)
        alarms = {int(part): _Alarm(*alarm) for part, alarm in known.alarms.items()}
        parts, count = range(len(self._names)), range(len(self._at))
        if len(at) != len(self._at) or any(part not in parts or alarm.statistic not in count for part, alarm in alarms.items()):
            raise ValueError(f"a memory of {len(at)} statistics for {len(self._at)}")
        if not (np.isfinite(at) & (at >= 0.0)).all():
            raise ValueError("a memory of statistics that are no numbers from 0")
        if known.events != self._events:
            if self._limit.seconds is None or not _FEWEST <= known.events <= _MOST:
                raise ValueError(f"a memory of limits for {known.events:g} events")
            self._events = known.events
            self._statistics = calibrate(self._signals, self._codes, known.events)
        self._rows, self._began, self._at, self._alarms = known.rows, known.began, at, alarms
        return ""


def _is_over(alarm: _Alarm | None, since: int) -> bool:
    """Whether it counts in a window that so many rows lie before."""
    return alarm is not None and alarm.row > since


def _rounded(events: float) -> float:
    """To a power of two, within what limits can be had for: a limit grows with its logarithm."""
    return float(2.0 ** round(log2(min(max(events, _FEWEST), _MOST))))
