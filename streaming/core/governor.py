"""The governor: between a verdict and a run stand confirmation, minimum samples, one run at a time and a cool-down."""

from collections import deque
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, NonNegativeInt

from inference.event import deterministic_id
from streaming.core.verdict import Action, Decision, Span, Verdict

_FORGOTTEN = 7 * 86_400.0
_LONGEST_WAIT = 86_400.0


@dataclass(frozen=True, slots=True)
class Governor:
    """When a breach starts a run. Times are seconds of log time (`Verdict.fell`), never of a clock.

    A run is started when `confirm` of the last `of` verdicts are breached (this one among them), `min_samples` predictions
    of the version were seen, no run of the model is active (an active run is given up on after `max_run`), and `cooldown`
    has passed since the last run was started. With `retrain` False a confirmed breach alerts, once per incident.

    Where a model has several windows or segments, `of` and `min_samples` count those of the same window and segment. The incident and
    the run are the model's. One change is one incident, however often a statistic crosses its limit meanwhile: it is over when another
    version takes over, or when each window and segment has been quiet for a whole window: its last `of` verdicts are, and the newest
    is of rows alone that came after the last breached one. While it goes on each further run waits twice as long as the one before,
    up to a day: what a retraining has not mended the next will hardly mend.
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


@dataclass(slots=True)
class _Story:
    """Of one window and segment: whether its last verdicts are breached, when the newest fell due, and the kind of what was said last.

    `until`: the last offset of its newest breached window, -1 for none. `quiet`: whether a whole window has been since.
    """

    recent: deque[bool]
    time: float = 0.0
    said: str = ""
    until: int = -1
    quiet: bool = True

    def take(self, verdict: Verdict) -> None:
        """The next of its verdicts."""
        self.recent.append(verdict.drift)
        self.time = verdict.fell.time
        if verdict.drift:
            self.until = verdict.window.last_offset
        self.quiet = not any(self.recent) and verdict.window.first_offset > self.until


_ONLY = ("", "")


class _Other(BaseModel):
    window: str
    segment: str
    recent: list[bool]
    time: float
    said: str
    until: int = -1
    quiet: bool = True


class _State(BaseModel):
    recent: list[bool]
    incident: str
    run: tuple[str, float] | None
    last_start: float | None
    said: str
    time: float = 0.0
    until: int = -1
    quiet: bool = True
    runs: NonNegativeInt = 0
    others: list[_Other] = []


class Governing:
    """One model's governor with its memory: recent breaches, the open incident and its runs, the active run, the last start.

    A window or segment that has had no verdict for a week no longer keeps an incident open.
    """

    def __init__(self, spec: Governor) -> None:
        self._spec = spec
        # By window and segment.
        self._stories: dict[tuple[str, str], _Story] = {}
        self._incident = ""
        self._run: _Run | None = None
        self._last_start: float | None = None
        self._runs = 0

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
        now = verdict.fell.time
        story = self._told(verdict, now)
        if not verdict.drift:
            if all(one.quiet for one in self._stories.values()):
                self._incident, self._runs = "", 0
            story.said = ""
            return None
        if self._run and now - self._run.started > self._spec.max_run:
            self._run = None
        hold = self._hold(verdict, story, now)
        if hold is not None:
            kind, reason = hold
            if kind == story.said:
                return None
            story.said = kind
            return self._decision("hold", reason, "", verdict, drift_began)
        if not self._incident:
            self._incident = deterministic_id("incident", verdict.id)
        story.said = ""
        reason = _counted(verdict, story)
        if not self._spec.retrain:
            return self._decision("alert", f"{reason}; retraining is off for this model", "", verdict, drift_began)
        self._run = _Run(deterministic_id("run", verdict.id), now)
        self._last_start = now
        self._runs += 1
        return self._decision("retrain", reason, self._run.id, verdict, drift_began)

    def _told(self, verdict: Verdict, now: float) -> _Story:
        """The story that the verdict belongs to, with it; what is too old to tell of the present is forgotten."""
        part = (verdict.of_window, verdict.segment)
        story = self._stories.setdefault(part, _Story(deque(maxlen=self._spec.of)))
        story.take(verdict)
        if len(self._stories) > 1:
            self._stories = {part: one for part, one in self._stories.items() if now - one.time <= _FORGOTTEN}
        return story

    def _hold(self, verdict: Verdict, story: _Story, now: float) -> tuple[str, str] | None:
        spec = self._spec
        if sum(story.recent) < spec.confirm:
            return "unconfirmed", f"{_counted(verdict, story)}; {spec.confirm} of {spec.of} confirm it"
        if verdict.predictions < spec.min_samples:
            of_segment = f" in {verdict.segment}" if verdict.segment else ""
            return (
                "few",
                f"{verdict.predictions} predictions of version {verdict.version}{of_segment} so far; "
                f"at least {spec.min_samples} are asked for",
            )
        if self._incident and not spec.retrain:
            return "alerted", f"incident {self._incident} is open, and retraining is off for this model"
        if self._run:
            return "active", f"run {self._run.id} is active"
        # The first wait is the cool-down; an incident that has had more runs doubles it for each.
        wait = min(spec.cooldown * 2.0 ** min(max(0, self._runs - 1), 60), max(spec.cooldown, _LONGEST_WAIT))
        if self._last_start is not None and now - self._last_start < wait:
            left = wait - (now - self._last_start)
            why = f", after {self._runs} runs of this incident" if self._runs > 1 else ""
            return "cooldown", f"the last run was started {now - self._last_start:.0f} s ago; {left:.0f} s of the cool-down are left{why}"
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
        self._stories.clear()
        self._incident, self._runs = "", 0
        self._run = None

    def keep(self, parts: Set[tuple[str, str]]) -> None:
        """These are the model's windows and segments from now on; what was remembered of others is forgotten."""
        self._stories = {part: story for part, story in self._stories.items() if part in parts}

    def state(self) -> dict[str, Any]:
        """Its memory as plain values, for `restore`."""
        only = self._stories.get(_ONLY) or _Story(deque())
        return {
            "recent": list(only.recent),
            "incident": self._incident,
            "run": [self._run.id, self._run.started] if self._run else None,
            "last_start": self._last_start,
            "said": only.said,
            "time": only.time,
            "until": only.until,
            "quiet": only.quiet,
            "runs": self._runs,
            "others": [
                {"window": window, "segment": segment, **asdict(story), "recent": list(story.recent)}
                for (window, segment), story in self._stories.items()
                if (window, segment) != _ONLY
            ],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, with another governor's settings too; ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        of = self._spec.of
        if known.recent:
            self._stories[_ONLY] = _Story(deque(known.recent, of), known.time, known.said, known.until, known.quiet)
        for one in known.others:
            self._stories[one.window, one.segment] = _Story(deque(one.recent, of), one.time, one.said, one.until, one.quiet)
        self._incident, self._runs = known.incident, known.runs
        self._run = _Run(*known.run) if known.run else None
        self._last_start = known.last_start

    def status(self) -> dict[str, Any]:
        """Its memory as plain JSON values."""
        most = max((story.recent for story in self._stories.values()), key=sum, default=deque[bool]())
        return {"incident": self._incident, "active_run": self.active_run, "breached": sum(most), "of": len(most)}


def _counted(verdict: Verdict, story: _Story) -> str:
    told = f"{verdict.told_of}: " if verdict.told_of else ""
    return f"{told}over the limit in {sum(story.recent)} of the last {len(story.recent)} windows"
