"""The governor: between a verdict and a run stand confirmation, minimum samples, one run at a time and a cool-down."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from inference.event import deterministic_id
from streaming.core.verdict import Action, Decision, Span, Verdict


@dataclass(frozen=True, slots=True)
class Governor:
    """When a breach starts a run. Times are seconds of log time (`Span.last_time`), never of a clock.

    A run is started when `confirm` of the last `of` verdicts are breached (this one among them), `min_samples` predictions
    of the version were seen, no run of the model is active (an active run is given up on after `max_run`), and `cooldown`
    has passed since the last run was started. With `retrain` False a confirmed breach alerts, once per incident.
    """

    confirm: int = 2
    of: int = 3
    min_samples: int = 0
    cooldown: float = 600.0
    max_run: float = 3600.0
    retrain: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.confirm <= self.of:
            raise ValueError(f"governor.confirm must be from 1 to governor.of ({self.of}), not {self.confirm}")
        if self.min_samples < 0 or self.cooldown < 0 or self.max_run <= 0:
            raise ValueError("governor.min_samples and governor.cooldown must not be negative, governor.max_run must be positive")

    def build(self) -> "Governing":
        return Governing(self)


@dataclass(slots=True)
class _Run:
    id: str
    started: float


class _State(BaseModel):
    recent: list[bool]
    incident: str
    run: tuple[str, float] | None
    last_start: float | None
    said: str


class Governing:
    """One model's governor with its memory: recent breaches, the open incident, the active run, the last start."""

    def __init__(self, spec: Governor) -> None:
        self._spec = spec
        self._recent: deque[bool] = deque(maxlen=spec.of)
        self._incident = ""
        self._run: _Run | None = None
        self._last_start: float | None = None
        self._said = ""

    @property
    def incident(self) -> str:
        """The open incident's id, or ""."""
        return self._incident

    @property
    def active_run(self) -> str:
        """The id of the run that was started and has not been heard of since, or ""."""
        return self._run.id if self._run else ""

    def judge(self, verdict: Verdict, drift_began: Span) -> Decision | None:
        """The decision on a verdict; None for a quiet one and for a repeat of what was said before."""
        self._recent.append(verdict.drift)
        if not verdict.drift:
            if not any(self._recent):
                self._incident = ""
            self._said = ""
            return None
        now = verdict.window.last_time
        if self._run and now - self._run.started > self._spec.max_run:
            self._run = None
        hold = self._hold(verdict, now)
        if hold is not None:
            kind, reason = hold
            if kind == self._said:
                return None
            self._said = kind
            return self._decision("hold", reason, "", verdict, drift_began)
        if not self._incident:
            self._incident = deterministic_id("incident", verdict.id)
        self._said = ""
        reason = f"over the limit in {sum(self._recent)} of the last {len(self._recent)} windows"
        if not self._spec.retrain:
            return self._decision("alert", f"{reason}; retraining is off for this model", "", verdict, drift_began)
        self._run = _Run(deterministic_id("run", verdict.id), now)
        self._last_start = now
        return self._decision("retrain", reason, self._run.id, verdict, drift_began)

    def _hold(self, verdict: Verdict, now: float) -> tuple[str, str] | None:
        spec, seen = self._spec, sum(self._recent)
        if seen < spec.confirm:
            return (
                "unconfirmed",
                f"over the limit in {seen} of the last {len(self._recent)} windows; {spec.confirm} of {spec.of} confirm it",
            )
        if verdict.predictions < spec.min_samples:
            return (
                "few",
                f"{verdict.predictions} predictions of version {verdict.version} so far; at least {spec.min_samples} are asked for",
            )
        if self._incident and not spec.retrain:
            return "alerted", f"incident {self._incident} is open, and retraining is off for this model"
        if self._run:
            return "active", f"run {self._run.id} is active"
        if self._last_start is not None and now - self._last_start < spec.cooldown:
            left = spec.cooldown - (now - self._last_start)
            return "cooldown", f"the last run was started {now - self._last_start:.0f} s ago; {left:.0f} s of the cool-down are left"
        return None

    def _decision(self, action: Action, reason: str, run_id: str, verdict: Verdict, drift_began: Span) -> Decision:
        id_ = deterministic_id("decision", verdict.id)
        return Decision(id_, action, reason, self._incident, run_id, verdict, drift_began)

    def finished(self, run_id: str) -> None:
        """The run ended, whatever its outcome; any other id changes nothing."""
        if self._run and self._run.id == run_id:
            self._run = None

    def promoted(self) -> None:
        """A new version took over: its windows start a new story; the cool-down goes on."""
        self._recent.clear()
        self._incident = ""
        self._said = ""
        self._run = None

    def state(self) -> dict[str, Any]:
        """Its memory as plain values, for `restore`."""
        return {
            "recent": list(self._recent),
            "incident": self._incident,
            "run": [self._run.id, self._run.started] if self._run else None,
            "last_start": self._last_start,
            "said": self._said,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, with another governor's settings too; ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        self._recent.extend(known.recent)
        self._incident, self._said = known.incident, known.said
        self._run = _Run(*known.run) if known.run else None
        self._last_start = known.last_start

    def status(self) -> dict[str, Any]:
        """Its memory as plain JSON values."""
        return {"incident": self._incident, "active_run": self.active_run, "breached": sum(self._recent), "of": len(self._recent)}
