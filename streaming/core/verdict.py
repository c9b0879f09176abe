"""What the monitor says: findings, verdicts, decisions and notices, all frozen values with deterministic ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple


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

    `number` counts the version's verdicts from 1; `predictions` counts the rows seen since the version took over;
    `breached` names the limits that the window goes over. `id` is the same on every machine and in every replay.
    """

    id: str
    model: str
    version: str
    number: int
    predictions: int
    window: Span
    findings: tuple[Finding, ...]
    breached: tuple[str, ...]

    @property
    def drift(self) -> bool:
        return bool(self.breached)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        findings = [_plain(finding, _FINDING) for finding in self.findings]
        window = _plain(self.window, _SPAN)
        return {**_plain(self, _VERDICT), "window": window, "findings": findings, "breached": [*self.breached], "drift": self.drift}


Action = Literal["retrain", "alert", "hold"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the governor makes of a verdict: start a retraining run, only alert (where retraining is off), or hold, and why.

    `incident` names the stretch of drift that it belongs to. `run_id` is the run to start, or "".
    `drift_began` is the estimate of where the drift began: the stretch from there to the window's end.
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
_VERDICT = tuple(one.name for one in fields(Verdict))


def _plain(value: object, names: tuple[str, ...]) -> dict[str, Any]:
    """A flat dataclass as a dict; `asdict` looks into every field for more of them, at ten times the cost."""
    return {name: getattr(value, name) for name in names}


def as_object(outcome: Outcome) -> dict[str, Any]:
    """An outcome as one JSON object, its class in lower case under `outcome`."""
    return {"outcome": type(outcome).__name__.lower(), **outcome.as_dict()}
