"""What is behind a verdict: of each finding over its limit what moved, from what to what, since when, and its share in the verdict.

Each finding is about one thing (`About`): a numeric column's level or spread, a share of a column's values (a category, missing, never
seen, out of range), or how two columns go together. That thing is followed through the window as a series of which the reference tells
what is normal; where the series left it, and how much speaks for that, is told by its likelihood ratio (changepoint.py).

The share in the verdict: a finding's weight is the root of twice that evidence, its distance from normal in standard errors; so findings
of limits of all kinds compare. A feature weighs as much as the heaviest of its findings, however many limits have found it. Shares are
weights over their sum; a feature's findings divide its share in proportion to theirs. What cannot be followed weighs as much as the
others do on average.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from typing import Literal

import numpy as np

from streaming.core.changepoint import NOWHERE, ChangePoint, left_level, left_share, told_by
from streaming.core.errors import NAME as ERRORS
from streaming.core.moved import About, Kind, hits, moved
from streaming.core.reference import CategoricalColumn, Codes, Floats, NumericColumn, Reference
from streaming.core.verdict import Explanation, Finding, Moved, Place, Span
from streaming.core.window import SlidingWindow

MOST = 50
"""Findings that are explained; the rest is counted."""
_FEWEST = 8
"""Rows that a category's share is looked at over, where there are as many."""
_OF_TEST: dict[str, Kind] = {"missing": "missing", "out_of_range": "outside", "new_categories": "unseen"}
_OF_SIGNAL: dict[str, Kind] = {"level": "level", "spread": "spread", "missing": "missing", "unseen": "unseen", "rare": "rare"}
_OTHERS: dict[str, tuple[Kind, ...]] = {"numeric": ("rare",), "categorical": ("level", "spread", "outside")}
"""What a column of this kind does not have."""


@dataclass(frozen=True, slots=True)
class _Change:
    """What a finding is about, and the window's row at which that left normal; `about` None and `weight` NaN where it cannot be told."""

    finding: Finding
    about: About | None
    left: ChangePoint

    @property
    def weight(self) -> float:
        return sqrt(2.0 * self.left.evidence) if self.about else float("nan")


def explain(
    reference: Reference, window: SlidingWindow | None, findings: Sequence[Finding], breached: Sequence[str], began: Span
) -> tuple[tuple[Explanation, ...], int]:
    """The explanations of what is over of the limits that are breached, and how many there are beside.

    At most `MOST` are given, by feature, the largest share first. `window` is what the findings are of, None where they are of none (of
    labelled errors); `began` stands for the place of what cannot be followed. The same for any order of the findings.
    """
    over = sorted({finding for finding in findings if finding.over and finding.limit in breached}, key=_key)
    scores = _Scores(reference, window) if window is not None and len(window) else None
    changes = [_change(scores, finding) for finding in over]
    shares = _shares(changes)
    of_feature: dict[str, float] = {}
    for change, share in zip(changes, shares, strict=True):
        of_feature[change.finding.feature] = of_feature.get(change.finding.feature, 0.0) + share
    ordered = sorted(
        zip(changes, shares, strict=True),
        key=lambda one: (-of_feature[one[0].finding.feature], one[0].finding.feature, -one[1], _key(one[0].finding)),
    )
    given = tuple([_explanation(reference, window, change, share, began) for change, share in ordered[:MOST]])
    return given, len(ordered) - len(given)


def _key(finding: Finding) -> tuple[str, ...]:
    return finding.feature, finding.limit, finding.test, finding.signal


def _shares(changes: Sequence[_Change]) -> list[float]:
    known = [change.weight for change in changes if change.about]
    usual = fsum(known) / len(known) if known else 1.0
    weights = [(change.weight if change.about else usual) or 1e-9 for change in changes]
    features = [change.finding.feature for change in changes]
    heaviest: dict[str, float] = {}
    together: dict[str, float] = {}
    for feature, weight in zip(features, weights, strict=True):
        heaviest[feature] = max(heaviest.get(feature, 0.0), weight)
        together[feature] = together.get(feature, 0.0) + weight
    total = fsum(heaviest.values())
    return [heaviest[feature] / total * weight / together[feature] for feature, weight in zip(features, weights, strict=True)]


# What a finding is about, and where that left normal


class _Scores:
    """How far each value's rank is from the middle, of the reference's rows and of the window's. Many findings share a column."""

    def __init__(self, reference: Reference, window: SlidingWindow) -> None:
        self.reference = reference
        self.window = window
        self._known: dict[int, tuple[Floats, Floats]] = {}

    def of(self, number: int) -> tuple[Floats, Floats]:
        if number not in self._known:
            ranks = self.reference.columns[number].ranks
            self._known[number] = ranks(self.reference.codes[number]) - 0.5, ranks(self.window.codes[number]) - 0.5
        return self._known[number]


def _change(scores: _Scores | None, finding: Finding) -> _Change:
    if scores is None:
        return _Change(finding, None, NOWHERE)
    signal, _, way = finding.signal.rpartition(" ")
    side = {"up": 1.0, "down": -1.0}.get(way, 0.0)
    if finding.test in _OF_TEST:
        side = 1.0
    asked = [(about, _left(scores, about, side)) for about in _abouts(scores.reference, scores.window, finding, signal)]
    if not asked:
        return _Change(finding, None, NOWHERE)
    about, left = max(asked, key=lambda one: one[1].evidence)
    return _Change(finding, about, left)


def _abouts(reference: Reference, window: SlidingWindow, finding: Finding, signal: str) -> list[About]:
    """What a finding may be about: the one thing that it names, else those of which most will speak for one."""
    columns = _columns_of(finding.feature, {column.name: number for number, column in enumerate(reference.columns)})
    if not columns:
        return []
    if len(columns) == 2:
        return [About("pair", columns)]
    column = reference.columns[columns[0]]
    named = _OF_TEST.get(finding.test) or _OF_SIGNAL.get(signal)
    if named and named not in _OTHERS[column.kind]:
        return [About(named, columns)]
    if isinstance(column, NumericColumn):
        return [About("level", columns), About("spread", columns)]
    code = next((code for name, code in column.numbers.items() if signal == f"category {name!r}"), None)
    if code is None:
        code = _leading(column, window.codes[columns[0]])
    return [About("category", columns, code) if code < len(column.counts) else About("unseen", columns)]


def _columns_of(feature: str, numbers: Mapping[str, int]) -> tuple[int, ...]:
    """The column of this name, or both columns of a pair, "x, y"; none for what is no column."""
    if feature in numbers:
        return (numbers[feature],)
    names = feature.split(", ")
    for place in range(1, len(names)):
        both = ", ".join(names[:place]), ", ".join(names[place:])
        if both[0] in numbers and both[1] in numbers:
            return numbers[both[0]], numbers[both[1]]
    return ()


def _leading(column: CategoricalColumn, codes: Codes) -> int:
    """The code of the category whose share is furthest from normal in the window, or in its newest half, quarter, ..."""
    expected = np.array([told_by(count / column.rows, column.rows) for count in [*column.counts.values(), 0]])
    leading, furthest, rows = len(column.counts), -1.0, len(codes)
    while rows >= min(_FEWEST, len(codes)) > 0:
        shares = np.bincount(codes[-rows:], minlength=column.missing + 1)[: len(expected)] / rows
        distances = np.abs(shares - expected) * np.sqrt(rows / (expected * (1.0 - expected)))
        if distances.max() > furthest:
            leading, furthest = int(distances.argmax()), float(distances.max())
        rows //= 2
    return leading


def _left(scores: _Scores, about: About, side: float) -> ChangePoint:
    if about.kind not in ("level", "spread", "pair"):
        (number,) = about.columns
        before, after = (hits(scores.reference.columns[number], about, some.codes[number]) for some in (scores.reference, scores.window))
        return left_share(after, told_by(float(before.mean()) if len(before) else 0.0, len(before)), side)
    # In ranks, so that no outlier counts for more than one value at the end.
    normal, series = scores.of(about.columns[0])
    if about.kind == "spread":
        normal, series = np.abs(normal), np.abs(series)
    elif about.kind == "pair":
        other, others = scores.of(about.columns[1])
        normal, series = normal * other, series * others
    normal = normal[~np.isnan(normal)]
    return left_level(series, float(normal.mean()), float(normal.var()), side) if len(normal) else NOWHERE


def _explanation(reference: Reference, window: SlidingWindow | None, change: _Change, share: float, began: Span) -> Explanation:
    finding, about, left = change.finding, change.about, change.left
    told = (finding.limit, finding.feature, finding.test, finding.signal, finding.score, finding.threshold)
    if about is None or window is None:
        unfollowed, ours = _of_itself(finding), _way(finding.signal)
        direction = ours or (_rose(unfollowed[0]) if unfollowed else "")
        return Explanation(*told, direction, unfollowed, Place(began.first_offset, began.first_time), 0, False, share)
    numbers = moved(reference, window, about, left.place)
    direction = _way(finding.signal) or (_rose(numbers[0]) if about.kind not in ("level", "spread") and numbers else _sign(left.side))
    since = window.span(began.partition, left.place)
    place, rows = Place(since.first_offset, since.first_time), len(window) - left.place
    return Explanation(*told, direction, _headed(numbers, direction), place, rows, left.earlier, share)


def _of_itself(finding: Finding) -> tuple[Moved, ...]:
    """What a finding on labelled errors says itself: its score is the mean error since the change, its threshold what that was before."""
    if finding.limit != ERRORS:
        return ()
    return (Moved(finding.signal.partition(" up")[0] or "error", finding.threshold, finding.score),)


Direction = Literal["up", "down", ""]


def _way(signal: str) -> Direction:
    way = signal.rpartition(" ")[2]
    return "up" if way == "up" else "down" if way == "down" else ""


def _sign(difference: float) -> Direction:
    return "up" if difference > 0 else "down" if difference < 0 else ""


def _rose(one: Moved) -> Direction:
    return _sign(one.after - one.before) if one.before is not None and one.after is not None else ""


def _headed(numbers: Sequence[Moved], direction: Direction) -> tuple[Moved, ...]:
    """With a first that went the way that is told: one outlier can move a mean against all other values, but no median."""
    robust = {"mean": "median", "standard deviation": "interquartile range"}.get(numbers[0].what) if numbers else None
    if robust is None or _rose(numbers[0]) == direction:
        return tuple(numbers)
    return tuple(sorted(numbers, key=lambda one: one.what != robust or _rose(one) != direction))
