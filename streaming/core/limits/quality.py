"""Limits of data quality over the window: missing values, values out of the reference's range, categories it does not know."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from streaming.core.changepoint import left_share, told_by
from streaming.core.limits.seam import chosen_columns
from streaming.core.reference import CategoricalColumn, Codes, Column, NumericColumn, Reference
from streaming.core.verdict import Finding
from streaming.core.window import Rows, SlidingWindow

Aspect = Literal["missing", "out_of_range", "new_categories"]

_FEW_VALUES = 50
"""Numeric columns with at most so many different values hold categories as well as numbers."""


@dataclass(frozen=True, slots=True)
class QualityLimit:
    """Shares of a column's values in the window, each at most so much above what the reference itself leads one to expect.

    | aspect           | of which columns                     | what is counted, of which values            | what is expected of it     |
    |------------------|--------------------------------------|---------------------------------------------|----------------------------|
    | `missing`        | all                                  | no value, of all rows                       | the reference's share      |
    | `out_of_range`   | numeric                              | below its least or above its largest, +-inf | its share of infinities    |
    | `new_categories` | categorical, numeric with few values | what it does not hold                       | its share of what it holds |
    |                  |                                      |                                             | but once (Good 1953)       |

    None: not asked. Of a column that lacks nothing in the reference, `missing` 0.05 allows 5 % missing; of one that lacks 20 %, 25 %: what
    the model was trained on is no fault of the stream. `columns` None: all, the prediction among them; each aspect is asked of those
    that have it.
    """

    name: str
    missing: float | None = None
    out_of_range: float | None = None
    new_categories: float | None = None
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.asked:
            raise ValueError(f"a limit of data quality asks for at least one of {', '.join(get_args(Aspect))}")
        for aspect, most in self.asked.items():
            if not 0.0 <= most < 1.0:
                raise ValueError(f"{aspect} is a share from 0 to below 1, not {most}")

    @property
    def asked(self) -> dict[Aspect, float]:
        """What is asked for, with its limit."""
        given: dict[Aspect, float | None] = {
            "missing": self.missing,
            "out_of_range": self.out_of_range,
            "new_categories": self.new_categories,
        }
        return {aspect: most for aspect, most in given.items() if most is not None}

    @property
    def fingerprint(self) -> str:
        return repr(("quality", self.name, self.missing, self.out_of_range, self.new_categories, self.columns))

    def build(self, reference: Reference, size: int) -> "QualityJudge":
        return QualityJudge(self, reference)


class _Asked(NamedTuple):
    """An aspect of the columns that have it: their numbers, names, which are numeric, codes for missing, expected shares, and limits."""

    aspect: Aspect
    columns: NDArray[np.int64]
    names: list[str]
    numeric: NDArray[np.bool_]
    missing: Codes
    expected: NDArray[np.float64]
    limits: NDArray[np.float64]


class QualityJudge:
    """Keeps nothing between windows: each is looked at anew, all columns at once."""

    def __init__(self, limit: QualityLimit, reference: Reference) -> None:
        self._limit = limit
        self._rows = len(reference.codes[0])
        self._asked = [self._of(aspect, most, reference) for aspect, most in limit.asked.items()]

    def _of(self, aspect: Aspect, most: float, reference: Reference) -> _Asked:
        limit = self._limit
        # Named columns that lack this aspect have another; whether they are there at all is asked first.
        named = chosen_columns(limit.name, reference, limit.columns, lambda column: True)
        wanted = {column.name for _, column in named}
        has = _HAS[aspect]
        chosen = chosen_columns(f"{limit.name}: {aspect}", reference, None, lambda column: column.name in wanted and has(column))
        places = np.array([number for number, _ in chosen])
        expected = np.array([_expected(aspect, column, reference.codes[number]) for number, column in chosen])
        missing = np.array([column.missing for _, column in chosen], dtype=np.int32)
        numeric = np.array([isinstance(column, NumericColumn) for _, column in chosen])
        return _Asked(aspect, places, [column.name for _, column in chosen], numeric, missing, expected, expected + most)

    def observe(self, rows: Rows) -> Sequence[int]:
        return ()

    def judge(self, window: SlidingWindow) -> tuple[list[Finding], bool]:
        findings = [finding for asked in self._asked for finding in self._found(asked, window.codes)]
        return findings, any(finding.over for finding in findings)

    def _found(self, asked: _Asked, codes: Codes) -> Iterator[Finding]:
        hits, of = _hits(asked, codes)
        shares = hits.sum(axis=1) / np.maximum(of, 1)
        for name, share, most, count in zip(asked.names, shares.tolist(), asked.limits.tolist(), of.tolist(), strict=True):
            if count:
                yield Finding(self._limit.name, name, asked.aspect, share, most, share > most)
            else:
                yield Finding(self._limit.name, name, asked.aspect, float("nan"), most, False, "the window has no values")

    def began(self, window: SlidingWindow) -> int | None:
        """Where the first of the shares that are over left what is expected."""
        places = []
        for asked in self._asked:
            hits, of = _hits(asked, window.codes)
            over = hits.sum(axis=1) / np.maximum(of, 1) > asked.limits
            for row, expected in zip(hits[over], asked.expected[over].tolist(), strict=True):
                places.append(left_share(row, told_by(expected, self._rows), 1.0).place)
        return min(places, default=None)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> str:
        return ""


def _hits(asked: _Asked, codes: Codes) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which cells are hits, columns x rows, and of how many of each column."""
    chosen, missing = codes[asked.columns], asked.missing[:, None]
    lacking = chosen == missing
    if asked.aspect == "missing":
        return lacking, np.full(len(chosen), chosen.shape[1])
    # The last code before that of missing: above all of the reference's numbers, or a category that it does not hold.
    hits = chosen == missing - 1
    if asked.aspect == "out_of_range":
        hits |= chosen == 0
    else:
        hits |= (chosen & 1 == 0) & asked.numeric[:, None]
    return hits, chosen.shape[1] - lacking.sum(axis=1)


def _expected(aspect: Aspect, column: Column, codes: Codes) -> float:
    """The share that the reference leads one to expect; `codes` are its rows'."""
    if aspect == "missing":
        return float((codes == column.missing).mean()) if len(codes) else 0.0
    if isinstance(column, CategoricalColumn):
        return sum(count == 1 for count in column.counts.values()) / column.n
    if aspect == "out_of_range":
        return float(column.outside(codes).sum() / (codes != column.missing).sum())
    return float((np.diff(column.below) == 1).sum() / column.n)


_HAS: Mapping[Aspect, Callable[[Column], bool]] = {
    "missing": lambda column: True,
    "out_of_range": lambda column: isinstance(column, NumericColumn) and column.n > 0,
    "new_categories": lambda column: column.n > 0 and (isinstance(column, CategoricalColumn) or len(column.distinct) <= _FEW_VALUES),
}
