"""Concept drift of one model: labels joined with predictions, their errors judged, one memory a stream and one judge a version."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from inference.event import deterministic_id
from inference.log import Record
from inference.messages import Label
from inference.pairing import Pair
from streaming.core.errors import NAME, ErrorJudge, ErrorLimit
from streaming.core.labels import Joined, Waiting
from streaming.core.rates import Count
from streaming.core.reference import Reference
from streaming.core.verdict import Explanation, Place, Span, Verdict


class _State(BaseModel):
    fingerprint: str
    waiting: dict[str, Any]
    judge: dict[str, Any]
    verdicts: Count


class Concept:
    """What labels say about the predictions of the version that is live; verdicts are of the window "errors"."""

    def __init__(self, limit: ErrorLimit, model: str, partition: int) -> None:
        self._limit = limit
        self._model = model
        self._partition = partition
        self._version = ""
        self._numeric = False
        self._waiting = Waiting(limit.max_waiting, limit.max_age)
        self._judge: ErrorJudge | None = None
        self._verdicts = 0
        self._due = False

    def took_over(self, version: str, reference: Reference | None) -> None:
        """From here on this version is live; without a reference its labels are counted only."""
        self._version = version
        self._numeric = reference is not None and reference.schema.prediction == "numeric"
        self._waiting.took_over(numeric=self._numeric)
        self._judge = ErrorJudge(self._limit, reference.schema.target, numeric=self._numeric) if reference else None
        self._verdicts = 0

    def predicted(self, pair: Pair, place: Record, predictions: Sequence[Any]) -> bool:
        """A prediction of the version, which `place` completed; whether its label, which came before it, makes a verdict fall due."""
        half = pair.request.event
        joined = self._waiting.add(half.id, half.source, place.offset, place.timestamp, predictions)
        return joined is not None and self._take(joined)

    def another(self, pair: Pair) -> None:
        """A prediction of a version that is not live."""
        place = pair.completed_by
        self._waiting.add(pair.id, pair.source, place.offset, place.timestamp, (), "other_version")

    def labelled(self, label: Label, time: float) -> bool:
        """A label, which was appended at this time; whether a verdict falls due."""
        return self._judge is not None and self._take(self._waiting.label(label, time))

    def _take(self, joined: Joined | None) -> bool:
        if joined is None or self._judge is None:
            return False
        self._due = self._judge.take(joined, self._waiting.counts)
        return self._due

    def verdict(self, record: Record, predictions: int) -> Verdict | None:
        """What fell due with this record, if anything did; `predictions` of the version were seen."""
        judge = self._judge
        if judge is None or not self._due:
            return None
        self._due = False
        self._verdicts += 1
        finding = judge.judge()
        place = Place(record.offset, record.timestamp)
        id_ = deterministic_id("verdict", NAME, self._model, self._version, self._partition, place.offset, judge.rates.labels)
        span, breached = self._span(judge.oldest, place), (NAME,) if finding.over else ()
        return Verdict(id_, self._model, self._version, self._verdicts, predictions, span, (finding,), breached, NAME)

    def began(self, verdict: Verdict) -> Span:
        """The stretch from the prediction with which the rise began to the newest verdict's place; its window if there is none."""
        if self._judge is None or not self._judge.over:
            return verdict.window
        return self._span(self._judge.began, verdict.fell)

    def explanation(self, verdict: Verdict) -> tuple[Explanation, ...]:
        """What is behind the newest verdict."""
        return tuple([self._judge.explanation(finding) for finding in verdict.findings if finding.over and self._judge])

    def _span(self, first: Place, last: Place) -> Span:
        return Span(self._partition, first.offset, last.offset, first.time, last.time)

    def state(self) -> dict[str, Any] | None:
        """All that its next answers depend on, as plain values; None where there is nothing to judge."""
        if self._judge is None:
            return None
        return {
            "fingerprint": self._fingerprint,
            "waiting": self._waiting.state(),
            "judge": self._judge.state(),
            "verdicts": self._verdicts,
        }

    def restore(self, state: Mapping[str, Any]) -> str:
        """Go on from what `state` gave, on one that has just been told of the same version; says what starts anew nevertheless, and why.

        ValueError when it gave no such thing.
        """
        known = _State.model_validate(state)
        if self._judge is None:
            return ""
        if known.fingerprint != self._fingerprint:
            return "the labelled errors start anew: their settings or what is predicted changed"
        self._waiting.restore(known.waiting)
        self._verdicts = known.verdicts
        return self._judge.restore(known.judge)

    @property
    def _fingerprint(self) -> str:
        return f"{self._limit.fingerprint} {'numeric' if self._numeric else 'categorical'}"

    def status(self, predictions: int) -> dict[str, Any]:
        """Counts, rates and lags as plain JSON values; `predictions` of the version were seen."""
        told = self._judge.status() if self._judge else {}
        share = told["labelled"] / predictions if told and predictions else None
        return {**told, "share_labelled": share, "waiting": self._waiting.rows, "counts": {**self._waiting.counts}}
