"""Segments: the rows of one value of a categorical column, watched beside the whole against the reference's own rows of that value."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference.errors import SettingsError
from streaming.core.limits import BudgetLimit, EvidentlyLimit, Limit
from streaming.core.reference import CategoricalColumn, Codes, Column, Reference, Values, prepare
from streaming.core.window import Rows

WHOLE = 0.5
"""The part of a budget of false alarms that the whole keeps where there are segments; they share the rest evenly."""


@dataclass(frozen=True, slots=True)
class Segments:
    """The `at_most` most frequent values of a categorical `column` that have at least `min_rows` rows in the reference."""

    column: str
    at_most: int = 20
    min_rows: int = 200

    def __post_init__(self) -> None:
        if self.at_most < 1 or self.min_rows < 2:
            raise ValueError(f"segments: at_most must be at least 1 and min_rows at least 2, not {self.at_most} and {self.min_rows}")

    def of(self, reference: Reference) -> "list[Segment]":
        """The most frequent first; SettingsError when the column is none that has categories."""
        names = [column.name for column in reference.columns]
        if self.column not in names:
            raise SettingsError([f"segments: no such column {self.column}; {reference.model} has {', '.join(names)}"])
        index = names.index(self.column)
        column = reference.columns[index]
        if not isinstance(column, CategoricalColumn):
            raise SettingsError([f"segments: {self.column} is numeric; a segment is one value of a categorical column"])
        frequent = [value for value, count in column.counts.items() if count >= self.min_rows][: self.at_most]
        return [Segment.of(reference, index, column, value) for value in frequent]


@dataclass(frozen=True, slots=True)
class Segment:
    """One of them: `name` is "column=value"; `code` is the value's in column number `index` of the whole's reference, of which its own
    `reference` is a part as large as `share`.
    """

    name: str
    index: int
    code: int
    reference: Reference
    share: float

    @classmethod
    def of(cls, reference: Reference, index: int, column: CategoricalColumn, value: str) -> "Segment":
        code = column.numbers[value]
        chosen = np.flatnonzero(reference.codes[index] == code)
        sample: Mapping[str, Values] = {
            one.name: _cells(one, codes) for one, codes in zip(reference.columns, reference.codes[:, chosen], strict=True)
        }
        own = prepare(reference.model, reference.version, reference.schema, sample)
        return cls(f"{column.name}={value}", index, code, own, len(chosen) / reference.codes.shape[1])

    def places(self, rows: Rows) -> NDArray[np.int64]:
        """Which of the whole's rows are its own."""
        return np.flatnonzero(rows.codes[self.index] == self.code)

    def own(self, rows: Rows) -> Rows:
        """Rows of its own, with the codes of its own reference."""
        return Rows.of(self.reference.columns, rows.cells, rows.offsets, rows.times, rows.occurred)


def shared(limit: Limit, part: float, share: float = 1.0) -> Limit:
    """The limit with this part of its budget of false alarms, for a stream that gets this share of the rows; itself where it has none."""
    if isinstance(limit, EvidentlyLimit):
        return limit if limit.budget is None else replace(limit, budget=limit.budget.part(part, share))
    if not isinstance(limit, BudgetLimit):
        return limit
    events = None if limit.events is None else max(1.0, limit.events * share / part)
    return replace(limit, events=events, seconds=None if limit.seconds is None else limit.seconds / part)


def _cells(column: Column, codes: Codes) -> Values:
    """The cells that have these codes in the reference itself."""
    if isinstance(column, CategoricalColumn):
        known = np.array([*column.counts, None, None], dtype=object)
        return known[codes]
    # Between the values that it holds, a reference has infinities alone.
    ends = np.where(codes == 0, -np.inf, np.inf)
    finite = column.distinct.take(codes >> 1, mode="clip") if column.n else ends
    cells: Values = np.where(codes == column.missing, np.nan, np.where(codes & 1, finite, ends))
    return cells
