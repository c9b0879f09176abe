"""A stretch of the past through the same fleet: what the live consumer said, or would have said. Performs nothing."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from inference.event import now_text
from inference.log import EventLog
from streaming.actions.explained import feature_texts
from streaming.core.fleet import Fleet
from streaming.core.verdict import Decision, Notice, Outcome, Verdict, as_object
from streaming.reader import everything


@dataclass
class Replay:
    """The outcomes of everything on a log, and their sum when the iteration has ended."""

    event_log: EventLog
    fleet: Fleet
    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Outcome]:
        for records in everything(self.event_log):
            self.events += len(records)
            for outcome in self.fleet.feed(records):
                self.outcomes[kind_of(outcome)] += 1
                yield outcome

    def summary_text(self) -> str:
        """The sum as one line for people."""
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.summary().items())

    def summary(self) -> dict[str, Any]:
        """Counts by kind of outcome, as plain JSON values."""
        names = ("verdicts", "breached", "retrain", "hold", "promoted", "retraining_finished", "unmonitored")
        verdicts = self.outcomes["verdict"] + self.outcomes["breached"]
        return {"events": self.events, **{name: self.outcomes[name] for name in names}, "verdicts": verdicts}


def kind_of(outcome: Outcome) -> str:
    """What it is counted as."""
    if isinstance(outcome, Verdict):
        return "breached" if outcome.drift else "verdict"
    return outcome.action if isinstance(outcome, Decision) else outcome.kind


def as_line(outcome: Outcome) -> str:
    """An outcome as one line of JSON."""
    return orjson.dumps(as_object(outcome)).decode()


def as_text(outcome: Outcome) -> str:
    """An outcome as one line for people; a decision that acts is followed by a line for each of the features with the largest shares."""
    if isinstance(outcome, Notice):
        told = outcome.data.get("outcome") or outcome.data.get("reason") or ""
        return (
            f"{_time(outcome.time)}  {outcome.model}  version {outcome.version or '-'}  {outcome.kind.replace('_', ' ')}  {told}".rstrip()
        )
    verdict = outcome if isinstance(outcome, Verdict) else outcome.verdict
    head = f"{_time(verdict.fell.time)}  {verdict.model}  version {verdict.version}"
    if isinstance(outcome, Decision):
        return "\n".join([f"{head}  {outcome.action}: {outcome.reason}", *(f"    {text}" for text in feature_texts(outcome.as_dict()))])
    over = ", ".join(f"{finding.feature} {finding.test} {finding.score:.3g}" for finding in verdict.findings if finding.over)
    state = f"over {', '.join(verdict.breached)}" if verdict.drift else "stable"
    of = f" of {verdict.told_of}" if verdict.told_of else ""
    return f"{head}  window {verdict.number}{of} at prediction {verdict.predictions}: {state}{f' ({over})' if over else ''}"


def _time(seconds: float) -> str:
    return now_text(seconds)[:23].replace("T", " ")
