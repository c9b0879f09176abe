"""What one setting said of one model, summed up as it goes by: alarms, decisions, incidents, and which known drifts were found."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from streaming.backtest.accuracy import Accuracy
from streaming.backtest.question import Course
from streaming.backtest.timeline import Part, evidence_of
from streaming.core.errors import NAME as ERRORS
from streaming.core.governor import Governing
from streaming.core.reference import Reference
from streaming.core.verdict import Decision, Notice, Verdict
from streaming.table_replay import Alarm

ALARMS = 2000
"""Alarms that are told one by one; all are counted."""
_INCIDENTS = 2000
_PROMOTIONS = 2000
_EVIDENCE = 20
_NOTES = 20
SCHEMA = "schema"

_HOLDS = {
    "unconfirmed": " confirm it",
    "few": " are asked for",
    "alerted": "retraining is off for this model",
    "active": " is active",
    "cooldown": " of the cool-down are left",
}
"""How the governor's reasons to hold end, by their kind."""


def hold_kind(reason: str) -> str:
    """Why the governor held: unconfirmed, few, alerted, active, cooldown, or other."""
    return next((kind for kind, end in _HOLDS.items() if reason.endswith(end)), "other")


class Found(BaseModel):
    """The first alarm of a known drift: its place among all alarms of the model, its row, and its log time."""

    alarm: int
    event: int
    time: float


class Memory(BaseModel):
    """The sums; `alarms`, `incidents` and `promotions` are the first 2,000 of each."""

    verdicts: int = 0
    breached: int = 0
    actions: dict[str, int] = {}
    holds: dict[str, int] = {}
    notices: dict[str, int] = {}
    alarm_count: int = 0
    false_alarms: int = 0
    alarms: list[dict[str, Any]] = []
    found: dict[int, Found] = {}
    incidents: list[dict[str, Any]] = []
    open_incident: str = ""
    promotions: list[dict[str, Any]] = []
    evidence: list[dict[str, Any]] = []
    versions: list[str] = []
    notes: list[str] = []


class Tally:
    """Takes verdicts, decisions and notices of one model in their order, each with the number of rows judged when it fell due.

    `full`: with explanations, evidence, timeline and accuracy, as the configuration itself has them; a tried setting has alarms alone.
    `by_row`: an explanation's place is a table's row.
    """

    def __init__(self, model: str, course: Course, *, full: bool, by_row: bool = False) -> None:
        self.model = model
        self.course = course
        self.memory = Memory()
        self.full = full
        self._by_row = by_row
        self.parts: dict[str, Part] = {}
        self.accuracy = Accuracy()

    def judged(self, verdict: Verdict, event: int, governing: Governing | None) -> None:
        """A verdict, after `governing` has judged it: an incident is over where that has none open any more."""
        memory = self.memory
        memory.verdicts += 1
        memory.breached += verdict.drift
        if verdict.version not in memory.versions:
            memory.versions.append(verdict.version)
        if governing is not None and memory.open_incident and governing.incident != memory.open_incident:
            self._close(verdict.fell.time)
        if self.full:
            name = "/".join(filter(None, (verdict.of_window, verdict.segment)))
            self.parts.setdefault(name, Part()).add(verdict, event)

    def decided(self, decision: Decision, event: int, reference: Reference | None = None) -> None:
        memory, time = self.memory, decision.verdict.fell.time
        if decision.action == "hold":
            kind = hold_kind(decision.reason)
            memory.holds[kind] = memory.holds.get(kind, 0) + 1
        else:
            memory.actions[decision.action] = memory.actions.get(decision.action, 0) + 1
            self._alarm(decision, event, time, reference)
        self._of_incident(decision, time)

    def _alarm(self, decision: Decision, event: int, time: float, reference: Reference | None) -> None:
        memory, verdict = self.memory, decision.verdict
        number = memory.alarm_count
        memory.alarm_count += 1
        place = self.course.drift_of(event, time, [*memory.found])
        if place is None:
            memory.false_alarms += 1
        elif place not in memory.found:
            memory.found[place] = Found(alarm=number, event=event, time=time)
        if self.full:
            self.accuracy.alarm(time)
        if number >= ALARMS:
            return
        told = {
            "event": event,
            "time": time if self.course.timed else None,
            "model": self.model,
            "version": verdict.version,
            "window": verdict.of_window,
            "segment": verdict.segment,
            "decision": decision.action,
            "reason": decision.reason,
            "incident": decision.incident,
            "run_id": decision.run_id,
            "known_drift": None if place is None else self.course.drifts[place].name,
        }
        memory.alarms.append({**told, "findings": self._findings(decision, event)} if self.full else told)
        if self.full and reference is not None and len(memory.evidence) < _EVIDENCE:
            memory.evidence.append({"alarm": number, "model": self.model, "features": evidence_of(decision, reference)})

    def _findings(self, decision: Decision, event: int) -> list[dict[str, Any]]:
        verdict = decision.verdict
        findings: list[dict[str, Any]] = Alarm(event, verdict.fell.time, verdict, decision.explanation).as_dict()["findings"]
        if not self._by_row:
            times = {(one.limit, one.feature, one.test, one.signal): one.since.time for one in decision.explanation}
            over = Alarm(event, verdict.fell.time, verdict, decision.explanation).findings
            for told, one in zip(findings, over, strict=True):
                told["since_time"] = times.get((one.limit, one.feature, one.test, one.signal))
        return findings

    def _of_incident(self, decision: Decision, time: float) -> None:
        if not decision.incident:
            return
        memory = self.memory
        known = next((one for one in reversed(memory.incidents) if one["id"] == decision.incident), None)
        if known is not None:
            known["decisions"] += 1
        elif len(memory.incidents) < _INCIDENTS:
            memory.incidents.append({"id": decision.incident, "model": self.model, "opened": time, "closed": None, "decisions": 1})
        # What cannot be read has incidents of its own, of which the governor does not know.
        if decision.verdict.of_window != SCHEMA:
            memory.open_incident = decision.incident

    def _close(self, time: float) -> None:
        for one in reversed(self.memory.incidents):
            if one["id"] == self.memory.open_incident:
                one["closed"] = time
                break
        self.memory.open_incident = ""

    def noticed(self, notice: Notice) -> None:
        memory = self.memory
        memory.notices[notice.kind] = memory.notices.get(notice.kind, 0) + 1
        if notice.kind == "promoted":
            if memory.open_incident:
                self._close(notice.time)
            if self.full:
                self.accuracy.promoted()
            if len(memory.promotions) < _PROMOTIONS:
                memory.promotions.append({"model": self.model, "version": notice.version, "time": notice.time})
        elif notice.kind in ("unmonitored", "restarted"):
            self.note(f"{self.model} version {notice.version or '-'} {notice.kind}: {notice.data.get('reason', '')}")

    def note(self, text: str) -> None:
        if text not in self.memory.notes and len(self.memory.notes) < _NOTES:
            self.memory.notes.append(text)

    @property
    def delays(self) -> list[int]:
        """In rows, from the first of each known drift that was found to its alarm."""
        return [one.event - self.course.began(place)[0] for place, one in self.memory.found.items()]

    @property
    def missed(self) -> int:
        """Known drifts that had rows, and no alarm."""
        return sum(self.course.happened(place) and place not in self.memory.found for place in range(len(self.course.drifts)))

    def state(self) -> dict[str, Any]:
        parts = {name: part.state() for name, part in self.parts.items()}
        return {"memory": self.memory.model_dump(mode="json"), "parts": parts, "accuracy": self.accuracy.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; ValueError when it gave no such thing."""
        try:
            self.memory = Memory.model_validate(state["memory"])
            self.parts = {name: Part.of(part) for name, part in state["parts"].items()}
            self.accuracy.restore(state["accuracy"])
        except KeyError as error:
            raise ValueError(f"there is no {error} in it") from None


def is_of_rows(verdict: Verdict) -> bool:
    """Whether the governor judges it: a change of what can be read it never hears of."""
    return verdict.of_window != SCHEMA


def is_of_labels(verdict: Verdict) -> bool:
    return verdict.of_window == ERRORS
