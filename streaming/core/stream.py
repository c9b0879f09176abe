"""One model's events on one partition: pairs halves, follows promotions, feeds the monitor of the version that is live."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel

from inference import event as events
from inference.errors import PayloadError, SettingsError, VersionError
from inference.log import Record
from inference.messages import decode_finished, decode_label, decode_promotion
from inference.pairing import Identities, Pair, Pairing
from inference.usual_bodies import PairReader
from streaming.core.concept import Concept
from streaming.core.errors import NAME as ERRORS
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import Reference
from streaming.core.schema import SchemaJudge
from streaming.core.verdict import Notice, Outcome, Place, Verdict

References = Callable[[str, str], Reference]
"""The reference of (model, version); raises VersionError when there is none."""

MonitorOf = Callable[[MonitorSpec, Reference, int, Counter[str]], Monitor]
"""Makes the monitor of a version; `Monitor` itself does."""

_Pending = tuple[list[Sequence[Any]], list[Any], list[int], list[float], list[float]]
"""Rows, predictions, log offsets, append times and (where they count) event times."""

_MESSAGES_KNOWN = 1000
"""Messages of one type whose repeats are recognised; by type, so that many labels don't make a promotion forgotten."""


_NOWHERE = Place(-1, 0.0)


class _State(BaseModel):
    version: str
    since: Place
    newest: Place
    counts: dict[str, int]
    pairing: dict[str, Any]
    messages: dict[str, bytes]
    governor: dict[str, Any]
    monitor: dict[str, Any] | None
    concept: dict[str, Any] | None = None
    schema_changes: dict[str, Any] | None = None


class ModelStream:
    """The state machine of one model on one partition of the log."""

    def __init__(
        self,
        model: str,
        partition: int,
        spec: MonitorSpec,
        references: References,
        live: Callable[[str], str | None],
        annotation: str,
        monitor: MonitorOf = Monitor,
    ) -> None:
        self._model = model
        self._partition = partition
        self._spec = spec
        self._references = references
        self._live = live
        self._monitor_of = monitor
        self._pairing = Pairing(annotation=annotation, model=model)
        self._messages = {kind: Identities(_MESSAGES_KNOWN) for kind in _MESSAGES}
        self._governing = spec.governor.build()
        self._version = ""
        self._since = _NOWHERE
        self._unmonitored = ""
        self._monitor: Monitor | None = None
        self._reader: PairReader | None = None
        self._by_event_time = False
        self._concept = Concept(spec.errors, model, partition) if spec.errors else None
        self._schema: SchemaJudge | None = None
        self._schema_changed = False
        self._pending: _Pending = ([], [], [], [], [])
        self.counts: Counter[str] = Counter()
        self.newest = _NOWHERE

    def feed(self, records: Sequence[Record]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        add, predicted = self._pairing.add, self._predicted
        for record in records:
            kind = record.event.type
            if kind == events.RESPONSE or kind == events.REQUEST:
                pair = add(record)
                if pair is not None:
                    if not self._version:
                        outcomes += self._first_seen(pair)
                    if predicted(pair):
                        outcomes += self._settled(pair.completed_by)
            elif kind in _MESSAGES:
                if kind != events.LABEL:
                    # A label changes nothing for the rows that wait: a log that is full of them must not make each row a batch.
                    outcomes += self._judged()
                outcomes += self._told(record)
        outcomes += self._judged()
        if records:
            self.newest = Place(records[-1].offset, records[-1].timestamp)
        return outcomes

    def _first_seen(self, pair: Pair) -> Iterator[Outcome]:
        """Nothing has named the live version yet: the first prediction does, or what `live` takes for granted."""
        version = pair.version or self._live(self._model)
        if version is not None:
            yield from self._take_over(version, pair.completed_by)

    def _predicted(self, pair: Pair) -> bool:
        """Whether `_settled` must be called."""
        if not self._version:
            self.counts["no_version"] += 1
        elif pair.version and pair.version != self._version:
            self.counts["other_version"] += 1
            if self._concept is not None:
                self._concept.another(pair)
        elif self._reader is None:
            self.counts["unmonitored"] += 1
        else:
            return self._decoded(pair, self._reader)
        return False

    def _decoded(self, pair: Pair, reader: PairReader) -> bool:
        try:
            rows, predictions = reader.read(pair.request.event, pair.response.event)
        except PayloadError as error:
            self.counts[f"unreadable {error.reason}"] += 1
            if self._schema is not None:
                self._schema_changed = self._schema.unreadable(error.reason, str(error), pair.completed_by)
            return self._schema_changed
        all_rows, all_predictions, offsets, times, occurred = self._pending
        all_rows += rows
        all_predictions += predictions
        place, count = pair.completed_by, len(rows)
        self.counts["predictions"] += count
        offsets += [place.offset] * count
        times += [place.timestamp] * count
        if self._by_event_time:
            occurred += [events.seconds_of(pair.request.event.time)] * count
        if self._schema is not None:
            self._schema_changed = self._schema.readable()
        judged = self._concept is not None and self._concept.predicted(pair, place, predictions)
        return judged or self._schema_changed

    def _settled(self, record: Record) -> Iterator[Outcome]:
        """What falls due with a prediction or a label itself, after all that waited: a change of the schema, a verdict on errors."""
        yield from self._judged()
        assert self._monitor is not None
        if self._schema is not None and self._schema_changed:
            self._schema_changed = False
            verdict, decision = self._schema.judge(record, self._monitor.predictions)
            yield verdict
            if decision is not None:
                yield replace(decision, evidence=self._monitor.evidence())
        if self._concept is not None:
            yield from self._governed(self._concept.verdict(record, self._monitor.predictions))

    def _judged(self) -> Iterator[Outcome]:
        """Everything that waits goes through the monitor; each verdict is followed by what the governor makes of it."""
        rows, predictions, offsets, times, occurred = self._pending
        if not rows or self._monitor is None:
            return
        self._pending = ([], [], [], [], [])
        for verdict in self._monitor.feed(rows, predictions, offsets, times, occurred or None):
            yield verdict
            began = self._monitor.drift_began(verdict) if verdict.drift else verdict.window
            decision = self._governing.judge(verdict, began)
            if decision is not None:
                yield self._monitor.explained(decision) if decision.action != "hold" else decision

    def _governed(self, verdict: Verdict | None) -> Iterator[Outcome]:
        """A verdict on labelled errors, if there is one, and what the governor makes of it."""
        if verdict is None or self._concept is None or self._monitor is None:
            return
        yield verdict
        decision = self._governing.judge(verdict, self._concept.began(verdict))
        if decision is not None and decision.action != "hold":
            decision = replace(decision, evidence=self._monitor.evidence(), explanation=self._concept.explanation(verdict))
        if decision is not None:
            yield decision

    def _told(self, record: Record) -> list[Outcome]:
        event = record.event
        if self._messages[event.type].repeats(event.source, event.id):
            self.counts["duplicate_messages"] += 1
            return []
        try:
            return [*_MESSAGES[event.type](self, record)]
        except PayloadError as error:
            self.counts[f"unreadable {error.reason}"] += 1
            return []

    def _labelled(self, record: Record) -> Iterator[Outcome]:
        label = decode_label(record.event)
        self.counts["labels"] += len(label.labels)
        if self._concept is not None and self._concept.labelled(label, record.timestamp):
            yield from self._settled(record)

    def _promoted(self, record: Record) -> Iterator[Outcome]:
        promotion = decode_promotion(record.event)
        if promotion.version == self._version:
            return
        self._governing.promoted()
        data = {
            "version": promotion.version,
            "previous": promotion.previous,
            "run_id": promotion.run_id,
            "metrics": dict(promotion.metrics),
        }
        yield Notice("promoted", record.event.id, self._model, promotion.version, record.timestamp, data, record.partition)
        yield from self._take_over(promotion.version, record)

    def _finished(self, record: Record) -> Iterator[Outcome]:
        data = decode_finished(record.event)
        self._governing.finished(data["run_id"])
        yield Notice("retraining_finished", record.event.id, self._model, data["version"], record.timestamp, data, record.partition)

    def _take_over(self, version: str, record: Record) -> Iterator[Outcome]:
        """From this record on, `version` is the live one; without a reference it goes unmonitored, and says so."""
        self._version = version
        self._since = Place(record.offset, record.timestamp)
        yield from self._watched()

    def _watched(self) -> Iterator[Notice]:
        """A monitor with no memory for the version that is live, or the reason why there is none."""
        self._monitor, self._reader, self._schema, self._unmonitored = None, None, None, ""
        try:
            reference = self._references(self._model, self._version)
            self._monitor = self._monitor_of(self._spec, reference, self._partition, self.counts)
            self._by_event_time = self._monitor.by_event_time
            self._reader = PairReader(self._monitor.reference.schema)
        except (VersionError, SettingsError) as error:
            self._unmonitored = str(error)
            yield self._notice("unmonitored", self._since, self._unmonitored)
        if self._monitor is not None and self._spec.schema is not None:
            self._schema = SchemaJudge(self._spec.schema, self._model, self._version, self._partition)
        if self._concept is not None:
            self._concept.took_over(self._version, self._monitor.reference if self._monitor else None)

    def _notice(self, kind: Literal["unmonitored", "restarted"], place: Place, reason: str) -> Notice:
        told = (reason,) if kind == "restarted" else ()
        id_ = events.deterministic_id(kind, self._model, self._version, self._partition, place.offset, *told)
        return Notice(kind, id_, self._model, self._version, place.time, {"reason": reason}, self._partition)

    def state(self) -> dict[str, Any]:
        """All that its next outcomes depend on, as plain values."""
        assert not self._pending[0], "between two feeds nothing waits to be judged"
        return {
            "version": self._version,
            "since": [*self._since],
            "newest": [*self.newest],
            "counts": dict(self.counts),
            "pairing": self._pairing.state(),
            "messages": {kind: identities.state() for kind, identities in self._messages.items()},
            "governor": self._governing.state(),
            "monitor": self._monitor.state() if self._monitor else None,
            "concept": self._concept.state() if self._concept else None,
            "schema_changes": self._schema.state() if self._schema else None,
        }

    def restore(self, state: Mapping[str, Any]) -> Iterator[Notice]:
        """Go on from what `state` gave, on a stream that has been fed nothing yet; ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        self._version, self._since, self.newest = known.version, known.since, known.newest
        self.counts.update(known.counts)
        self._pairing.restore(known.pairing)
        for kind, identities in known.messages.items():
            if kind in self._messages:
                self._messages[kind].restore(identities)
        self._governing.restore(known.governor)
        if not self._version:
            return
        yield from self._watched()
        if self._monitor is not None:
            # Where there was no reference and now is one, somebody has put it there.
            reasons = self._monitor.restore(known.monitor) if known.monitor else ["its reference can be read now"]
            if self._concept is not None and known.concept is not None:
                reasons += filter(None, [self._concept.restore(known.concept)])
            if self._schema is not None and known.schema_changes is not None:
                self._schema.restore(known.schema_changes)
            self._governing.keep(self._monitor.parts | ({(ERRORS, "")} if self._concept else set()))
            if reasons:
                yield self._notice("restarted", self.newest, "; ".join(reasons))

    def status(self) -> dict[str, Any]:
        verdict = self._monitor.last if self._monitor else None
        predictions = self._monitor.predictions if self._monitor else 0
        return {
            "version": self._version,
            "unmonitored": self._unmonitored,
            "predictions": predictions,
            "windows": self._monitor.status() if self._monitor else [],
            "counts": {**self.counts, **self._pairing.counts.as_dict()},
            "governor": self._governing.status(),
            "verdict": verdict.as_dict() if verdict else None,
            "labels": self._concept.status(predictions) if self._concept else None,
            "schema": self._schema.status() if self._schema else None,
        }


_MESSAGES: Mapping[str, Callable[[ModelStream, Record], Iterator[Outcome]]] = {
    events.LABEL: ModelStream._labelled,
    events.PROMOTED: ModelStream._promoted,
    events.RETRAINING_FINISHED: ModelStream._finished,
}
