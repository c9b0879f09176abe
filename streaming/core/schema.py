"""Schema changes: the share of predictions that no longer fit the version's schema, as drift that only alerts."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

from pydantic import BaseModel, FiniteFloat

from inference.event import deterministic_id
from inference.log import Record
from streaming.core.governor import Governor
from streaming.core.rates import Count
from streaming.core.verdict import Decision, Explanation, Finding, Moved, Place, Span, Verdict

NAME = "schema"
"""The limit's name, and that of the window its verdicts are of."""

_FEATURE = "(payload)"
_TELLING = frozenset({"missing_feature", "wrong_width", "row_mismatch"})
"""Reasons whose messages name features and numbers of them, and no cell of anybody's."""

_LONGEST = 300
_ALERTS = Governor(confirm=1, of=1, min_samples=0, cooldown=0.0, retrain=False)
"""A retraining would read the same payloads: it has nothing to learn from them, and mends no client."""


@dataclass(frozen=True, slots=True)
class SchemaLimit:
    """At most `share` of the version's last `of` predictions may be unreadable: features missing, rows of another width or type.

    One verdict and one alert when the share is reached, however few have come (1 of 20 for 0.05 of 200 is not enough, 10 are), one quiet
    verdict when less than half of it is left. It has a governor of its own: it never starts a run, and no other limit's incident is its.
    """

    share: float = 0.05
    of: int = 200

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0 or self.of < 1:
            raise ValueError(f"schema.share must be above 0 and at most 1, not {self.share}; schema.of at least 1, not {self.of}")

    @property
    def enough(self) -> int:
        """Unreadable predictions that are over the limit."""
        return max(1, ceil(self.share * self.of - 1e-9))


class _Unreadable(NamedTuple):
    number: Count
    reason: str
    offset: Count
    time: FiniteFloat


class _State(BaseModel):
    pairs: Count
    unreadable: list[_Unreadable]
    told: str
    over: bool
    verdicts: Count
    governor: dict[str, Any]


class SchemaJudge:
    """Of one version. Memory: what was unreadable among the last `of` predictions, without the payloads."""

    def __init__(self, limit: SchemaLimit, model: str, version: str, partition: int) -> None:
        self._limit = limit
        self._named = (model, version, partition)
        self._pairs = 0
        self._unreadable: deque[_Unreadable] = deque()
        self._told = ""
        self._over = False
        self._verdicts = 0
        self._governing = _ALERTS.build()

    def readable(self) -> bool:
        """A prediction that could be read; whether `judge` must be called."""
        self._pairs += 1
        return bool(self._unreadable) and self._changed()

    def unreadable(self, reason: str, message: str, record: Record) -> bool:
        """One that could not, which `record` completed; whether `judge` must be called."""
        self._pairs += 1
        self._unreadable.append(_Unreadable(self._pairs, reason, record.offset, record.timestamp))
        if reason in _TELLING:
            self._told = message[:_LONGEST]
        return self._changed()

    def _changed(self) -> bool:
        while self._unreadable and self._unreadable[0].number <= self._pairs - self._limit.of:
            self._unreadable.popleft()
        count, enough = len(self._unreadable), self._limit.enough
        over = 2 * count >= enough if self._over else count >= enough
        changed, self._over = over != self._over, over
        return changed

    def judge(self, record: Record, predictions: int) -> tuple[Verdict, Decision | None]:
        """The verdict that fell due with `record`, and the decision; `predictions` of the version could be read."""
        model, version, partition = self._named
        self._verdicts += 1
        first = self._unreadable[0] if self._unreadable else _Unreadable(0, "", record.offset, record.timestamp)
        span = Span(partition, first.offset, record.offset, first.time, record.timestamp)
        count = len(self._unreadable)
        signal = self._signal()
        finding = Finding(NAME, _FEATURE, "unreadable", count / self._limit.of, self._limit.share, self._over, "", signal)
        id_ = deterministic_id("verdict", NAME, model, version, partition, record.offset)
        breached = (NAME,) if self._over else ()
        verdict = Verdict(id_, model, version, self._verdicts, predictions, span, (finding,), breached, NAME)
        decision = self._governing.judge(verdict, span)
        if decision is not None:
            reason = f"{count} of the last {min(self._limit.of, self._pairs)} predictions can't be read: {signal}; no retraining mends that"
            moved = Moved("unreadable", None, finding.score)
            since = Place(first.offset, first.time)
            behind = Explanation(*finding[:3], signal, finding.score, finding.threshold, "up", (moved,), since, count, False, 1.0)
            decision = replace(decision, reason=reason, explanation=(behind,))
        return verdict, decision

    def _signal(self) -> str:
        """The reasons with their counts, the most frequent first, and what the newest message says."""
        reasons = Counter(one.reason for one in self._unreadable)
        counted = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
        return f"{counted} ({self._told})" if self._told and _TELLING & reasons.keys() else counted

    def status(self) -> dict[str, Any]:
        """Where it stands, as plain JSON values."""
        return {"unreadable": len(self._unreadable), "of": min(self._limit.of, self._pairs), "over": self._over, "signal": self._signal()}

    def state(self) -> dict[str, Any]:
        """Its memory as plain values."""
        return {
            "pairs": self._pairs,
            "unreadable": [list(one) for one in self._unreadable],
            "told": self._told,
            "over": self._over,
            "verdicts": self._verdicts,
            "governor": self._governing.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, with another limit too; ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        self._pairs, self._told, self._over, self._verdicts = known.pairs, known.told, known.over, known.verdicts
        self._unreadable.extend(known.unreadable)
        self._governing.restore(known.governor)
