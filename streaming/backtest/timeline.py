"""Scores against limits along the way, in bounded memory: when there are too many points, neighbours become one that keeps the highest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import numpy as np
from pydantic import BaseModel

from streaming.core.reference import CategoricalColumn, Column, NumericColumn, Reference
from streaming.core.statistics import P_VALUES
from streaming.core.verdict import Decision, Finding, Verdict, ranking

POINTS = 2000
FEATURES = 50
_SERIES = 400
"""Series of one window that are kept on the way; those that never came near their limits go first."""
_BINS = 20
_NAMES = 20
_ALARM_FEATURES = 6

_Key = tuple[str, str, str]
"""Feature, test and limit."""


def height(finding: Finding) -> float:
    """How far along to its limit: 1 at the limit, more beyond; a p-value the smaller, the higher."""
    if not (isfinite(finding.score) and isfinite(finding.threshold)):
        return inf if finding.over else 0.0
    if finding.test in P_VALUES:
        return finding.threshold / max(finding.score, 1e-300)
    return abs(finding.score) / max(abs(finding.threshold), 1e-300)


@dataclass(slots=True)
class _Series:
    scores: list[float | None]
    limits: list[float | None]
    heights: list[float]


class _State(BaseModel):
    width: int
    filled: int
    time: list[float]
    event: list[int]
    over: list[bool]
    series: list[tuple[list[str], list[float | None], list[float | None], list[float]]]


@dataclass(slots=True)
class Part:
    """Of one window and segment: at most 2,000 points, each of `width` verdicts; `filled` of the last one's are there."""

    width: int = 1
    filled: int = 0
    time: list[float] = field(default_factory=list)
    event: list[int] = field(default_factory=list)
    over: list[bool] = field(default_factory=list)
    series: dict[_Key, _Series] = field(default_factory=dict)

    def add(self, verdict: Verdict, event: int) -> None:
        if not self.time or self.filled == self.width:
            if len(self.time) == POINTS:
                self._halve()
            self._open(verdict, event)
        elif verdict.drift and not self.over[-1]:
            self.time[-1], self.event[-1], self.over[-1] = verdict.fell.time, event, True
        self.filled += 1
        for finding in verdict.findings:
            self._put(finding)
        if len(self.series) > _SERIES:
            self._thin()

    def _open(self, verdict: Verdict, event: int) -> None:
        self.time.append(verdict.fell.time)
        self.event.append(event)
        self.over.append(verdict.drift)
        self.filled = 0
        for one in self.series.values():
            one.scores.append(None)
            one.limits.append(None)
            one.heights.append(-1.0)

    def _put(self, finding: Finding) -> None:
        key = (finding.feature, finding.test, finding.limit)
        one = self.series.get(key)
        if one is None:
            count = len(self.time)
            one = self.series[key] = _Series([None] * count, [None] * count, [-1.0] * count)
        at = height(finding)
        if at > one.heights[-1]:
            one.scores[-1] = _finite(finding.score)
            one.limits[-1] = _finite(finding.threshold)
            one.heights[-1] = at

    def _halve(self) -> None:
        """Neighbours become one: of a breach if one of them is, with the higher of each series."""
        kept = [place if self.over[place] or not self.over[place + 1] else place + 1 for place in range(0, POINTS, 2)]
        self.time, self.event = [self.time[place] for place in kept], [self.event[place] for place in kept]
        self.over = [self.over[place] for place in kept]
        for one in self.series.values():
            higher = [place + (one.heights[place + 1] > one.heights[place]) for place in range(0, POINTS, 2)]
            one.scores, one.limits = ([column[place] for place in higher] for column in (one.scores, one.limits))
            one.heights = [one.heights[place] for place in higher]
        self.width, self.filled = 2 * self.width, 2 * self.width

    def _thin(self) -> None:
        ordered = sorted(self.series, key=lambda key: (-max(self.series[key].heights), key))
        self.series = {key: self.series[key] for key in ordered[: _SERIES // 2]}

    def as_dict(self) -> dict[str, Any]:
        """The features that came nearest to their limits, as plain JSON values."""
        nearest: dict[str, float] = {}
        for key, one in self.series.items():
            nearest[key[0]] = max(nearest.get(key[0], 0.0), *one.heights)
        shown = sorted(nearest, key=lambda feature: (-nearest[feature], feature))[:FEATURES]
        features = [
            {"feature": key[0], "test": key[1], "limit_name": key[2], "limit": one.limits, "score": one.scores}
            for key, one in sorted(self.series.items(), key=lambda item: (shown.index(item[0][0]) if item[0][0] in shown else 0, item[0]))
            if key[0] in shown
        ]
        return {"features": features, "time": self.time, "event": self.event, "over": self.over}

    def state(self) -> dict[str, Any]:
        series = [[[*key], one.scores, one.limits, one.heights] for key, one in self.series.items()]
        told = {name: getattr(self, name) for name in ("width", "filled", "time", "event", "over")}
        return {**told, "series": series}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Part":
        """From what `state` gave; ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        series = {(key[0], key[1], key[2]): _Series(scores, limits, heights) for key, scores, limits, heights in known.series}
        return cls(known.width, known.filled, known.time, known.event, known.over, series)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


# What an alarm's window looked like


def evidence_of(decision: Decision, reference: Reference) -> list[dict[str, Any]]:
    """The windows of the alarm's first six features next to the reference, as histograms of shares."""
    columns = {column.name: column for column in reference.columns}
    wanted: dict[str, None] = {}
    for feature, _ in ranking(decision.explanation):
        names = [feature] if feature in columns else [name for name in columns if name in feature.split(", ")]
        wanted.update(dict.fromkeys(names))
    shown = [name for name in wanted if name in decision.evidence][:_ALARM_FEATURES]
    return [{"feature": name, "kind": columns[name].kind, **_histograms(columns[name], decision.evidence[name])} for name in shown]


def _histograms(column: Column, window: Sequence[Any]) -> dict[str, Any]:
    if isinstance(column, CategoricalColumn):
        return _of_categories(column, [value for value in window if value is not None])
    return _of_numbers(column, np.array([value for value in window if value is not None], dtype=np.float64))


def _of_categories(column: CategoricalColumn, window: Sequence[str]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for value in window:
        counts[value] = counts.get(value, 0) + 1
    total, seen = max(1, column.n), max(1, len(window))
    weight = {name: column.counts.get(name, 0) / total + counts.get(name, 0) / seen for name in {*column.counts, *counts}}
    names = sorted(weight, key=lambda name: (-weight[name], name))[:_NAMES]
    sides = {}
    for side, of, size in (("reference", column.counts, total), ("window", counts, seen)):
        shares = [of.get(name, 0) / size for name in names]
        rest = max(0.0, sum(of.values()) / size - sum(shares))
        more = len(weight) > _NAMES
        sides[side] = {"names": [*names, *(["(others)"] if more else [])], "share": [*shares, *([rest] if more else [])]}
    return sides


def _of_numbers(column: NumericColumn, window: "np.ndarray[Any, np.dtype[np.float64]]") -> dict[str, Any]:
    """In bins of one width over the middle 98 % of both; what lies beyond is in the bins at the ends."""
    window = window[np.isfinite(window)]
    known = [values for values in (column.values, window) if len(values)] or [np.array([0.0, 1.0])]
    # At values themselves: between the last of many and an outlier there is nothing to see.
    low = min(float(np.quantile(values, 0.01, method="higher")) for values in known)
    high = max(float(np.quantile(values, 0.99, method="lower")) for values in known)
    if not low < high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    sides = {}
    for side, values in (("reference", column.values), ("window", window)):
        counts, _ = np.histogram(np.clip(values, low, high), edges)
        sides[side] = {"edges": edges.tolist(), "share": (counts / max(1, len(values))).tolist()}
    return sides
