"""What the monitor says: findings, verdicts, decisions and notices, all frozen values with deterministic ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple


class Place(NamedTuple):
    """Where a record stands on its partition, and since when (seconds since 1970)."""

    offset: int
    time: float


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one partition of the log, both ends inside; times are log append times, seconds since 1970."""

    partition: int
    first_offset: int
    last_offset: int
    first_time: float
    last_time: float


class Finding(NamedTuple):
    """One test of one feature: `score` (a p-value or a distance) against `threshold`; `over` tells whether it drifts.

    `limit` names the limit that asked. `unknown` says why there is no score (then `score` is NaN and `over` False). `signal` says
    what of the feature was measured and which way it went, where the limit looks at more than one thing: "missing up".
    """

    limit: str
    feature: str
    test: str
    score: float
    threshold: float
    over: bool
    unknown: str = ""
    signal: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one full window of one model version.

    `number` counts the version's verdicts from 1; `predictions` counts the rows that its window has seen since the version took over;
    `breached` names the limits that the window goes over. `id` is the same on every machine and in every replay.

    `of_window` names the window, where a model has several, and `segment` ("column=value") what it is of, where it is not of all rows.
    `due` is the record with which the verdict fell due, where that is not the window's last: rows of a window of time wait for older ones.
    """

    id: str
    model: str
    version: str
    number: int
    predictions: int
    window: Span
    findings: tuple[Finding, ...]
    breached: tuple[str, ...]
    of_window: str = ""
    segment: str = ""
    due: Place | None = None

    @property
    def drift(self) -> bool:
        return bool(self.breached)

    @property
    def fell(self) -> Place:
        """Where on the log it fell due."""
        return self.due or Place(self.window.last_offset, self.window.last_time)

    @property
    def told_of(self) -> str:
        """Window and segment as text, "" for a model's only window over all rows."""
        parts = [f"window {self.of_window}"] if self.of_window else []
        return ", ".join([*parts, *([self.segment] if self.segment else [])])

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        findings = [_plain(finding, _FINDING) for finding in self.findings]
        window = _plain(self.window, _SPAN)
        due = self.due._asdict() if self.due else None
        plain = {"window": window, "findings": findings, "breached": [*self.breached], "due": due}
        return {**_plain(self, _VERDICT), **plain, "drift": self.drift}


class Moved(NamedTuple):
    """What was measured of a feature, in the reference and since the change; None where there was nothing to measure."""

    what: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is behind a finding that is over: its own names and numbers, which way the feature went and from what to what.

    `moved`: the first is what the finding is about, the others say more. The feature left normal at `since`; "after" is of the window's
    `rows` rows from there on. `earlier`: it may have been before, nearly as much speaks for the whole window. `share` is its part of all
    that the verdict is about; those of one verdict sum to 1.
    """

    limit: str
    feature: str
    test: str
    signal: str
    score: float
    threshold: float
    direction: Literal["up", "down", ""]
    moved: tuple[Moved, ...]
    since: Place
    rows: int
    earlier: bool
    share: float

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values; `what`, `before` and `after` are those of the first that moved."""
        head = self.moved[0] if self.moved else Moved("", None, None)
        since, moved = self.since._asdict(), [one._asdict() for one in self.moved]
        return {**_plain(self, _EXPLANATION), **head._asdict(), "since": since, "moved": moved}


def ranking(explanation: Sequence[Explanation]) -> list[tuple[str, float]]:
    """Features with their shares in the verdict, the largest first."""
    shares: dict[str, float] = {}
    for one in explanation:
        shares[one.feature] = shares.get(one.feature, 0.0) + one.share
    return sorted(shares.items(), key=lambda item: (-item[1], item[0]))


Action = Literal["retrain", "alert", "hold"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the governor makes of a verdict: start a retraining run, only alert (where retraining is off), or hold, and why.

    `incident` names the stretch of drift that it belongs to. `run_id` is the run to start, or "".
    `drift_began` is the estimate of where the drift began: the stretch from there to the window's end.
    `explanation` (not with "hold") says of each finding over its limit what is behind it, by feature, the one with the largest share in the
    verdict first; `unexplained` counts what there is beside.
    `evidence` is the window itself by column (not with "hold"; no part of equality or of the JSON).
    """

    id: str
    action: Action
    reason: str
    incident: str
    run_id: str
    verdict: Verdict
    drift_began: Span
    evidence: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, compare=False, repr=False)
    explanation: tuple[Explanation, ...] = ()
    unexplained: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values, without the evidence."""
        return {
            "id": self.id,
            "action": self.action,
            "reason": self.reason,
            "incident": self.incident,
            "run_id": self.run_id,
            "verdict": self.verdict.as_dict(),
            "drift_began": _plain(self.drift_began, _SPAN),
            "explanation": [one.as_dict() for one in self.explanation],
            "unexplained": self.unexplained,
            "ranking": [{"feature": feature, "share": share} for feature, share in ranking(self.explanation)],
        }


NoticeKind = Literal["promoted", "unmonitored", "restarted", "retraining_finished"]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that people want to hear of: a promotion taken over, a version without a reference, a run's end, or a monitor
    that started anew ("restarted") because what was remembered of it no longer fits.

    `data` is the event's JSON body (for "unmonitored" and "restarted": {"reason": ...}).
    """

    kind: NoticeKind
    id: str
    model: str
    version: str
    time: float
    data: Mapping[str, Any]
    partition: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        names = ("kind", "id", "model", "version", "partition", "time")
        return {**{name: getattr(self, name) for name in names}, "data": dict(self.data)}


Outcome = Verdict | Decision | Notice

_SPAN = tuple(one.name for one in fields(Span))
_FINDING = Finding._fields
_EXPLANATION = tuple(one.name for one in fields(Explanation) if one.name not in ("moved", "since"))
_VERDICT = tuple(one.name for one in fields(Verdict))


def _plain(value: object, names: tuple[str, ...]) -> dict[str, Any]:
    """A flat dataclass as a dict; `asdict` looks into every field for more of them, at ten times the cost."""
    return {name: getattr(value, name) for name in names}


def as_object(outcome: Outcome) -> dict[str, Any]:
    """An outcome as one JSON object, its class in lower case under `outcome`."""
    return {"outcome": type(outcome).__name__.lower(), **outcome.as_dict()}
