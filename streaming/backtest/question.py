"""What a backtest is asked: known drifts, which alarms are of them, and how long the quiet traffic beside them was."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel

from inference.errors import SettingsError
from streaming.core.reference import Floats

_NAMES = ("name", "model", "from", "until")
_MAX_DRIFTS = 1000


def moment(value: object) -> tuple[float, bool]:
    """A row's number, from 1, or a time as seconds since 1970; and whether it is a time. ValueError says what would be right.

    A whole number is a row; a time is a date or an RFC 3339 text, UTC where it names no zone.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is no row and no time")
    if isinstance(value, int):
        number = value
    elif isinstance(value, str) and value.strip().removeprefix("row").strip().isdecimal():
        number = int(value.strip().removeprefix("row"))
    else:
        return _seconds(value), True
    if number < 1:
        raise ValueError(f"rows are counted from 1, not {number}")
    return float(number), False


def _seconds(value: object) -> float:
    try:
        if isinstance(value, datetime):
            at = value
        elif isinstance(value, date):
            at = datetime(value.year, value.month, value.day, tzinfo=UTC)
        else:
            at = datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise ValueError(f"{value!r} is no row's number and no time; write for example 17424, 2026-10-03 or 2026-10-03T14:00:00Z") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True, slots=True)
class KnownDrift:
    """A stretch of rows (counted from 1 by model) or of times in which there was a change, both ends inside.

    `model` "" is any. `injected`: we have put it there ourselves.
    """

    name: str
    model: str
    first: float
    last: float
    timed: bool
    injected: bool = False

    def holds(self, event: float, time: float) -> bool:
        return self.first <= (time if self.timed else event) <= self.last

    def is_of(self, model: str) -> bool:
        return self.model in ("", model)


def known_drift(name: str, model: str, first: object, last: object, *, injected: bool = False) -> KnownDrift:
    """From plain values; an end that is None or "" is open. ValueError says what is wrong."""
    start, timed = moment(first)
    end, end_timed = (inf, timed) if last is None or last == "" else moment(last)
    if timed != end_timed:
        raise ValueError("from and until are both rows, or both times")
    if end < start:
        raise ValueError(f"it ends (until {last}) before it begins (from {first})")
    return KnownDrift(name, model, start, end, timed, injected)


def read_known_drifts(path: Path, models: Sequence[str]) -> list[KnownDrift]:
    """Read a CSV file with a header, or a YAML or JSON list: name, model (where there are several), from, until (may be left out).

    SettingsError tells every entry that is wrong with its place.
    """
    problems: list[str] = []
    found: list[KnownDrift] = []
    for place, entry in _entries(path):
        try:
            found.append(_drift(entry, models, len(found) + 1))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    twice = sorted({one.name for one in found if [other.name for other in found].count(one.name) > 1})
    if twice:
        problems.append(f"{path}: more than one known drift is named {', '.join(twice)}")
    if not found and not problems:
        problems.append(f"{path}: there is no known drift in it")
    if len(found) > _MAX_DRIFTS:
        problems.append(f"{path}: {len(found)} known drifts; at most {_MAX_DRIFTS} are looked at")
    if problems:
        raise SettingsError(problems)
    return found


def _drift(entry: Mapping[str, Any], models: Sequence[str], number: int) -> KnownDrift:
    unknown = [str(name) for name in entry if name not in _NAMES]
    if unknown:
        raise ValueError(f"unknown {', '.join(unknown)}; a known drift has {', '.join(_NAMES)}")
    model = str(entry.get("model") or "")
    if model and model not in models:
        raise ValueError(f"there is no model {model}; there is {', '.join(models)}")
    if not model and len(models) > 1:
        raise ValueError(f"name its model: one of {', '.join(models)}")
    if entry.get("from") in (None, ""):
        raise ValueError("'from' is missing: the row or the time at which it began")
    return known_drift(str(entry.get("name") or f"drift {number}"), model, entry["from"], entry.get("until"))


def _entries(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path}: cannot be read: {error}"]) from error
    if path.suffix.lower() == ".csv":
        rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
        return [(f"{path}:{rows.line_num}", {str(name): value for name, value in row.items()}) for row in rows]
    try:
        listed = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError([f"{path}: cannot be read: {error}"]) from error
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise SettingsError([f"{path}: must be a list of known drifts, each with {', '.join(_NAMES)}"])
    return [(f"{path}: number {number}", one) for number, one in enumerate(listed, 1)]


class _State(BaseModel):
    rows: int
    first: float | None
    last: float | None
    quiet_rows: int
    quiet_seconds: float
    before: list[int]
    began: list[float | None]


class Course:
    """What went by of one model: rows, log times, how much of it outside of known drifts, and where each of those began."""

    def __init__(self, drifts: Sequence[KnownDrift], *, timed: bool = True) -> None:
        self.drifts = tuple(drifts)
        self.timed = timed
        self.rows = 0
        self.first: float | None = None
        self.last: float | None = None
        self.quiet_rows = 0
        self._quiet_seconds = 0.0
        self._before = [0] * len(self.drifts)
        self._began: list[float | None] = [None] * len(self.drifts)

    def passed(self, times: Floats) -> None:
        """The next rows, with their log times."""
        if not len(times):
            return
        numbers = np.arange(self.rows + 1, self.rows + len(times) + 1)
        self.first = float(times[0]) if self.first is None else self.first
        ordered = np.maximum.accumulate(np.concatenate([[self.first if self.last is None else self.last], times]))
        quiet: NDArray[np.bool_] = np.ones(len(times), dtype=bool)
        for place, drift in enumerate(self.drifts):
            at = times if drift.timed else numbers
            inside = (at >= drift.first) & (at <= drift.last)
            quiet &= ~inside
            if self._began[place] is None:
                began = np.flatnonzero(inside)
                self._before[place] += int(began[0]) if len(began) else len(times)
                self._began[place] = float(times[began[0]]) if len(began) else None
        self.quiet_rows += int(np.count_nonzero(quiet))
        self._quiet_seconds += float(np.diff(ordered)[quiet].sum())
        self.rows += len(times)
        self.last = float(ordered[-1])

    @property
    def quiet_days(self) -> float:
        """Days of log time outside of known drifts; 0 without times."""
        return self._quiet_seconds / 86400.0 if self.timed else 0.0

    def began(self, place: int) -> tuple[int, float | None]:
        """The number of the first row in the known drift, and its time: that of the drift itself where that is known."""
        drift, row_time = self.drifts[place], self._began[place]
        return self._before[place] + 1, drift.first if drift.timed else row_time

    def happened(self, place: int) -> bool:
        """Whether there was a row in it."""
        return self._began[place] is not None

    def drift_of(self, event: int, time: float, found: Sequence[int]) -> int | None:
        """The known drift that an alarm is of: of those around it the earliest not found yet, else the latest. None: it is false."""
        holding = [place for place, drift in enumerate(self.drifts) if drift.holds(event, time)]
        if not holding:
            return None
        unfound = [place for place in holding if place not in found]
        return min(unfound, key=self._order) if unfound else max(holding, key=self._order)

    def _order(self, place: int) -> tuple[int, int]:
        return self._before[place], place

    def state(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "first": self.first,
            "last": self.last,
            "quiet_rows": self.quiet_rows,
            "quiet_seconds": self._quiet_seconds,
            "before": [*self._before],
            "began": [*self._began],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave with the same known drifts; ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        if not len(known.before) == len(known.began) == len(self.drifts):
            raise ValueError(f"{len(known.before)} known drifts for {len(self.drifts)}")
        self.rows, self.first, self.last = known.rows, known.first, known.last
        self.quiet_rows, self._quiet_seconds = known.quiet_rows, known.quiet_seconds
        self._before, self._began = known.before, known.began
