"""One model's events on one partition: pairs halves, follows promotions, feeds the monitor of the version that is live."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from inference import event as events
from inference.errors import PayloadError, SettingsError, VersionError
from inference.log import Record
from inference.messages import decode_finished, decode_label, decode_promotion
from inference.pairing import Identities, Pair, Pairing
from inference.usual_bodies import PairReader
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import Reference
from streaming.core.verdict import Notice, Outcome

References = Callable[[str, str], Reference]
"""The reference of (model, version); raises VersionError when there is none."""

_MESSAGES_KNOWN = 1000
"""Messages of one type whose repeats are recognised; by type, so that many labels don't make a promotion forgotten."""


class Place(NamedTuple):
    """Where a record stands on its partition, and since when (seconds since 1970)."""

    offset: int
    time: float


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
    ) -> None:
        self._model = model
        self._partition = partition
        self._spec = spec
        self._references = references
        self._live = live
        self._pairing = Pairing(annotation=annotation, model=model)
        self._messages = {kind: Identities(_MESSAGES_KNOWN) for kind in _MESSAGES}
        self._governing = spec.governor.build()
        self._version = ""
        self._since = _NOWHERE
        self._unmonitored = ""
        self._monitor: Monitor | None = None
        self._reader: PairReader | None = None
        self._pending: tuple[list[Sequence[Any]], list[Any], list[int], list[float]] = ([], [], [], [])
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
                    predicted(pair)
            elif kind in _MESSAGES:
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

    def _predicted(self, pair: Pair) -> None:
        if not self._version:
            self.counts["no_version"] += 1
        elif pair.version and pair.version != self._version:
            self.counts["other_version"] += 1
        elif self._reader is None:
            self.counts["unmonitored"] += 1
        else:
            self._decoded(pair, self._reader)

    def _decoded(self, pair: Pair, reader: PairReader) -> None:
        try:
            rows, predictions = reader.read(pair.request.event, pair.response.event)
        except PayloadError as error:
            self.counts[f"unreadable {error.reason}"] += 1
            return
        all_rows, all_predictions, offsets, times = self._pending
        all_rows += rows
        all_predictions += predictions
        place, count = pair.completed_by, len(rows)
        self.counts["predictions"] += count
        offsets += [place.offset] * count
        times += [place.timestamp] * count

    def _judged(self) -> Iterator[Outcome]:
        """Everything that waits goes through the monitor; each verdict is followed by what the governor makes of it."""
        rows, predictions, offsets, times = self._pending
        if not rows or self._monitor is None:
            return
        self._pending = ([], [], [], [])
        for verdict in self._monitor.feed(rows, predictions, offsets, times):
            yield verdict
            began = self._monitor.drift_began(verdict) if verdict.drift else verdict.window
            decision = self._governing.judge(verdict, began)
            if decision is not None:
                yield replace(decision, evidence=self._monitor.evidence()) if decision.action != "hold" else decision

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
        self.counts["labels"] += len(decode_label(record.event).labels)
        yield from ()

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
        self._monitor, self._reader, self._unmonitored = None, None, ""
        try:
            self._monitor = Monitor(self._spec, self._references(self._model, self._version), self._partition)
            self._reader = PairReader(self._monitor.reference.schema)
        except (VersionError, SettingsError) as error:
            self._unmonitored = str(error)
            yield self._notice("unmonitored", self._since, self._unmonitored)

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
            if reasons:
                yield self._notice("restarted", self.newest, "; ".join(reasons))

    def status(self) -> dict[str, Any]:
        verdict = self._monitor.last if self._monitor else None
        return {
            "version": self._version,
            "unmonitored": self._unmonitored,
            "predictions": self._monitor.predictions if self._monitor else 0,
            "window": self._spec.window.size,
            "counts": {**self.counts, **self._pairing.counts.as_dict()},
            "governor": self._governing.status(),
            "verdict": verdict.as_dict() if verdict else None,
        }


_MESSAGES: Mapping[str, Callable[[ModelStream, Record], Iterator[Outcome]]] = {
    events.LABEL: ModelStream._labelled,
    events.PROMOTED: ModelStream._promoted,
    events.RETRAINING_FINISHED: ModelStream._finished,
}
