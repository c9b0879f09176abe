"""What-if injections: changes that are put into decoded rows before the monitor sees them, the same in every run."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inference.errors import SettingsError
from streaming.backtest.question import KnownDrift, known_drift
from streaming.core.reference import CategoricalColumn, Column, Floats, NumericColumn, Reference, Values
from streaming.core.window import Rows
from streaming.settings import seconds as duration

Kind = Literal["shift", "ramp", "scale", "unit", "missing", "category"]

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_WHEN = re.compile(r"\s+(from|until)\s+")
_SHIFT = re.compile(rf"({_NUMBER})\s*(sd)?")
_RAMP = re.compile(rf"({_NUMBER})\s*(sd)?\s+over\s+(\S+)(?:\s+(?:rows|events))?")
_FACTOR = re.compile(rf"x?\s*({_NUMBER})")
_SHARE = re.compile(rf"({_NUMBER})\s*(%)?")
_CATEGORY = re.compile(rf"({_NUMBER})\s*(%)?(?:\s+of)?(?:\s+(\S.*))?")
_HOW = {
    "shift": "shift 0.5sd, or shift 3",
    "ramp": "ramp 0.5sd over 5000, or ramp 3 over 2d",
    "scale": "scale x1.3",
    "unit": "unit 1000",
    "missing": "missing 0.1",
    "category": "category 0.1, or category 0.1 of NAME",
}
NEW_CATEGORY = "injected"


@dataclass(frozen=True, slots=True)
class Injection:
    """A change of one feature. `amount`: of a shift or the end of a ramp (in standard deviations of the reference if `in_sd`), a factor
    (of the spread around the median: "scale", of the value: "unit"), or a share of the rows ("missing", "category").

    `over`: the length of a ramp, in rows, or in seconds where `over_time`. `number` tells the random draws of several injections apart.
    """

    text: str
    feature: str
    kind: Kind
    amount: float
    drift: KnownDrift
    in_sd: bool = False
    over: float = 0.0
    over_time: bool = False
    category: str = NEW_CATEGORY
    number: int = 0

    def check(self, reference: Reference) -> None:
        """SettingsError when there is no such feature, or it is of the other kind."""
        column = _column(self, reference)
        if column is None:
            names = ", ".join(column.name for column in reference.columns)
            raise SettingsError([f"--inject {self.text!r}: {reference.model} has no feature {self.feature!r}; it has {names}"])
        takes = {"missing": True, "category": isinstance(column, CategoricalColumn)}.get(self.kind, isinstance(column, NumericColumn))
        if not takes:
            raise SettingsError([f"--inject {self.text!r}: {self.feature} is {column.kind}, and cannot have a {self.kind}"])

    def changed(self, cells: Values, column: Column, numbers: NDArray[np.int64], times: Floats) -> Values:
        """The column's cells with the change in them; `numbers` are the rows', from 1."""
        at = times if self.drift.timed else numbers
        inside = (at >= self.drift.first) & (at <= self.drift.last)
        if not inside.any():
            return cells
        after = cells.copy()
        after[inside] = _CHANGES[self.kind](self, cells[inside], column, numbers[inside], times[inside])
        return after

    def _amount(self, column: Column) -> float:
        return self.amount * column.std if self.in_sd and isinstance(column, NumericColumn) else self.amount

    def _shifted(self, cells: Values, column: Column, numbers: NDArray[np.int64], times: Floats) -> Values:
        return cells + self._amount(column)

    def _ramped(self, cells: Values, column: Column, numbers: NDArray[np.int64], times: Floats) -> Values:
        gone = times - self.drift.first if self.over_time else numbers - self.drift.first + 1.0
        return cells + self._amount(column) * np.clip(gone / self.over, 0.0, 1.0)

    def _scaled(self, cells: Values, column: Column, numbers: NDArray[np.int64], times: Floats) -> Values:
        middle = float(np.median(column.values)) if isinstance(column, NumericColumn) and column.n else 0.0
        return middle + (cells - middle) * self.amount

    def _converted(self, cells: Values, column: Column, numbers: NDArray[np.int64], times: Floats) -> Values:
        return cells * self.amount

    def _emptied(self, cells: Values, column: Column, numbers: NDArray[np.int64], times: Floats) -> Values:
        after = cells.copy()
        after[self._drawn(numbers)] = np.nan if isinstance(column, NumericColumn) else None
        return after

    def _renamed(self, cells: Values, column: Column, numbers: NDArray[np.int64], times: Floats) -> Values:
        after = cells.copy()
        after[self._drawn(numbers)] = self.category
        return after

    def _drawn(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows of the share: by the row's number alone, so that no batch's end changes anything."""
        first, last = int(numbers[0]), int(numbers[-1])
        # The generator makes four numbers at each of its steps.
        skipped = first % 4
        random = np.random.Philox(key=self.number)
        random.advance(first // 4)
        uniform = np.random.Generator(random).random(skipped + last - first + 1)[skipped:]
        drawn: NDArray[np.bool_] = uniform[numbers - first] < self.amount
        return drawn


_CHANGES: Mapping[str, Callable[[Injection, Values, Column, NDArray[np.int64], Floats], Values]] = {
    "shift": Injection._shifted,
    "ramp": Injection._ramped,
    "scale": Injection._scaled,
    "unit": Injection._converted,
    "missing": Injection._emptied,
    "category": Injection._renamed,
}


def injected(rows: Rows, reference: Reference, injections: Sequence[Injection], before: int) -> Rows:
    """The rows with these changes in them; `before` of their model came before."""
    if not injections or not len(rows):
        return rows
    cells, codes = list(rows.cells), rows.codes.copy()
    numbers = np.arange(before + 1, before + len(rows) + 1)
    for injection in injections:
        for place, column in enumerate(reference.columns):
            if column.name == injection.feature:
                cells[place] = injection.changed(cells[place], column, numbers, rows.times)
                codes[place] = column.codes(cells[place])
    return replace(rows, cells=tuple(cells), codes=codes)


def _column(injection: Injection, reference: Reference) -> Column | None:
    return next((column for column in reference.columns if column.name == injection.feature), None)


def read_injections(texts: Sequence[str], models: Sequence[str]) -> list[Injection]:
    """From texts such as "sepal_length: shift 0.5sd from 2026-10-03 until 2026-10-05", several in one with ";" between.

    Where there are several models a text begins with one: "default/iris sepal_length: ...". SettingsError tells all that is wrong.
    """
    problems: list[str] = []
    found: list[Injection] = []
    for text in [part.strip() for told in texts for part in told.split(";") if part.strip()]:
        try:
            found.append(_injection(text, models, len(found) + 1))
        except ValueError as error:
            problems.append(f"--inject {text!r}: {error}")
    if problems:
        raise SettingsError(problems)
    return found


def _injection(text: str, models: Sequence[str], number: int) -> Injection:
    named, colon, told = text.rpartition(": ")
    if not colon or not named.strip():
        raise ValueError("write FEATURE: KIND ... from ROW_OR_TIME, for example 'sepal_length: shift 0.5sd from 2026-10-03'")
    model = next((one for one in models if named.startswith(f"{one} ")), "")
    if not model and len(models) > 1:
        raise ValueError(f"name its model before the feature: one of {', '.join(models)}")
    feature = named.removeprefix(model).strip()
    what, *when = _WHEN.split(told.strip())
    ends = dict(zip(when[::2], when[1::2], strict=True))
    if "from" not in ends or len(ends) * 2 != len(when):
        raise ValueError("say once from which row or time on, and at most once until when: 'from 5000', 'from 2026-10-03 until 2026-10-05'")
    kind, _, rest = what.strip().partition(" ")
    drift = known_drift(f"injected {text}", model, ends["from"], ends.get("until"), injected=True)
    made = _of_kind(kind, rest.strip(), Injection(text, feature, "shift", 0.0, drift, number=number))
    if made is None:
        known = _HOW.get(kind)
        raise ValueError(f"write {known}" if known else f"no change is named {kind!r}; there is {'; '.join(_HOW.values())}")
    return made


def _of_kind(kind: str, rest: str, blank: Injection) -> Injection | None:
    """The injection with what its kind wants to know; None when that cannot be read."""
    if kind == "shift" and (match := _SHIFT.fullmatch(rest)):
        return replace(blank, amount=float(match[1]), in_sd=bool(match[2]))
    if kind == "ramp" and (match := _RAMP.fullmatch(rest)):
        over, timed = _length(match[3])
        if timed and not blank.drift.timed:
            raise ValueError("a ramp over a stretch of time begins at a time, and not at a row")
        if blank.drift.timed and not timed:
            raise ValueError("a ramp over so many rows begins at a row, and not at a time")
        return replace(blank, kind="ramp", amount=float(match[1]), in_sd=bool(match[2]), over=over, over_time=timed)
    if kind in ("scale", "unit", "factor") and (match := _FACTOR.fullmatch(rest)):
        return replace(blank, kind="scale" if kind == "scale" else "unit", amount=_positive(float(match[1])))
    if kind == "missing" and (match := _SHARE.fullmatch(rest)):
        return replace(blank, kind="missing", amount=_share(match[1], match[2]))
    if kind == "category" and (match := _CATEGORY.fullmatch(rest)):
        return replace(blank, kind="category", amount=_share(match[1], match[2]), category=(match[3] or NEW_CATEGORY).strip())
    return None


def _length(text: str) -> tuple[float, bool]:
    """A ramp's length in rows, or in seconds; and whether it is a stretch of time."""
    rows = text.isdecimal()
    length = float(text) if rows else float(str(duration(text)))
    if not 0.0 < length < inf:
        raise ValueError(f"a ramp is longer than {text}")
    return length, not rows


def _positive(factor: float) -> float:
    if factor <= 0.0:
        raise ValueError(f"a factor is above 0, not {factor:g}")
    return factor


def _share(number: str, percent: str | None) -> float:
    share = float(number) / (100.0 if percent else 1.0)
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a share is above 0 and at most 1, not {share:g}")
    return share
