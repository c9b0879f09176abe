"""What a window test may reach on each column where its limits come from a budget of false alarms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import isinf, nan
from typing import Literal

from streaming.core.bootstrap.calibration import Quiet, Tested, columns_over, quiet, untellable
from streaming.core.bootstrap.evidence import fixed_test, score_of
from streaming.core.reference import CategoricalColumn, Column, Reference
from streaming.core.statistics import Test


@dataclass(frozen=True, slots=True)
class ColumnLimit:
    """The test of one column, the evidence from which on it drifts, and Evidently's score of a full window with that evidence; `unknown`
    says why there is no limit."""

    test: Test
    evidence: float
    score: float
    unknown: str = ""


class WindowLimits:
    """The limits of all columns that have values in the reference, by their numbers; for any budget, from one calibration."""

    def __init__(self, found: Quiet) -> None:
        self.quiet = found
        self._known: tuple[float, Mapping[int, ColumnLimit]] = (0.0, {})

    def at(self, events: float) -> Mapping[int, ColumnLimit]:
        """For one false alarm in so many rows."""
        if self._known[0] != events:
            tested = self.quiet.tested
            made = {
                index: ColumnLimit(test, evidence, nan, untellable(test, column))
                if isinf(evidence)
                else ColumnLimit(test, evidence, score_of(test, column, evidence, tested.size))
                for index, column, test, evidence in zip(
                    tested.indexes, tested.columns, tested.tests, self.quiet.limits(events).tolist(), strict=True
                )
            }
            self._known = (events, made)
        return self._known[1]


def tested_columns(
    test: Test | Literal["auto"], columns: Sequence[tuple[int, Column]], share: float | None, size: int, slide: int
) -> Tested | None:
    """What a limit tests of its columns; None where none has a value."""
    known = [(index, column, fixed_test(test, column)) for index, column in columns if column.n]
    if not known:
        return None
    indexes, chosen, tests = zip(*known, strict=True)
    return Tested(tuple(chosen), tuple(indexes), tuple(tests), size, min(slide, size), columns_over(share, len(columns)))


def window_limits(name: str, tested: Tested, reference: Reference) -> WindowLimits:
    """Calibrated for this limit of this version: the same in every process. The last few are kept."""
    return _calibrated(_Asked(_digest(name, tested, reference), name, tested, reference))


@dataclass(frozen=True, slots=True)
class _Asked:
    digest: bytes
    name: str = field(compare=False)
    tested: Tested = field(compare=False)
    reference: Reference = field(compare=False)


@lru_cache(maxsize=8)
def _calibrated(asked: _Asked) -> WindowLimits:
    reference = asked.reference
    return WindowLimits(quiet(asked.tested, reference, reference.model, reference.version, asked.name))


def _digest(name: str, tested: Tested, reference: Reference) -> bytes:
    """Of all that the outcome depends on."""
    told = blake2b(digest_size=16)
    told.update(
        repr((reference.model, reference.version, name, tested.indexes, tested.tests, tested.size, tested.slide, tested.over)).encode()
    )
    told.update(reference.codes.tobytes())
    for column in tested.columns:
        told.update(repr([*column.counts.items()]).encode() if isinstance(column, CategoricalColumn) else column.values.tobytes())
    return told.digest()
