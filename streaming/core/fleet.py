"""All models of one consumer: takes records in log order, gives verdicts, decisions and notices.

Its outcomes depend on the records and their order alone: not on where a batch is cut, not on a clock. That is why a
replay says what the live consumer said, and a restarted consumer that reads the log again says it again.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from inference import event as events
from inference.errors import PayloadError, SettingsError, VersionError
from inference.log import Record
from inference.messages import decode_finished, decode_label, decode_promotion
from inference.pairing import Pair, Pairing
from inference.payload import rows_and_predictions
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import Reference
from streaming.core.verdict import Notice, Outcome

References = Callable[[str, str], Reference]
"""The reference of (model, version); raises VersionError when there is none."""


class Fleet:
    """Routes each record to its model. A model no spec is given for is counted and left alone."""

    def __init__(
        self, specs: Mapping[str, MonitorSpec], references: References, *, live: Callable[[str], str | None], annotation: str
    ) -> None:
        """`live` names the version to take for granted when neither a promotion nor an annotation has named one."""
        self._models = {model: ModelStream(model, spec, references, live, annotation) for model, spec in specs.items()}
        self.unknown: Counter[str] = Counter()

    def feed(self, records: Sequence[Record]) -> list[Outcome]:
        """The outcomes of these records, in order per model."""
        by_model: dict[str, list[Record]] = {}
        for record in records:
            by_model.setdefault(record.event.model, []).append(record)
        outcomes: list[Outcome] = []
        for model, stretch in by_model.items():
            stream = self._models.get(model)
            if stream is not None:
                outcomes += stream.feed(stretch)
            elif model in self.unknown or len(self.unknown) < 1000:
                self.unknown[model] += len(stretch)
            else:
                self.unknown["(others)"] += len(stretch)
        return outcomes

    def status(self) -> dict[str, Any]:
        """Where every model stands, as plain JSON values."""
        return {"models": {model: stream.status() for model, stream in self._models.items()}, "unknown_models": dict(self.unknown)}


class ModelStream:
    """One model's events: pairs halves, follows promotions, feeds the monitor of the version that is live."""

    def __init__(self, model: str, spec: MonitorSpec, references: References, live: Callable[[str], str | None], annotation: str) -> None:
        self._model = model
        self._spec = spec
        self._references = references
        self._live = live
        self._pairing = Pairing(annotation=annotation)
        self._governing = spec.governor.build()
        self._version = ""
        self._unmonitored = ""
        self._monitor: Monitor | None = None
        self._pending: tuple[list[Sequence[Any]], list[Any], list[int], list[float]] = ([], [], [], [])
        self.counts: Counter[str] = Counter()

    def feed(self, records: Sequence[Record]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for record in records:
            kind = record.event.type
            if kind in (events.REQUEST, events.RESPONSE):
                pair = self._pairing.add(record)
                if pair is not None:
                    outcomes += self._predicted(pair)
            elif kind in _MESSAGES:
                outcomes += self._judged()
                try:
                    outcomes += _MESSAGES[kind](self, record)
                except PayloadError as error:
                    self.counts[f"unreadable {error.reason}"] += 1
        outcomes += self._judged()
        return outcomes

    def _predicted(self, pair: Pair) -> Iterator[Outcome]:
        if not self._version:
            version = pair.version or self._live(self._model)
            if version is None:
                self.counts["no_version"] += 1
                return
            yield from self._take_over(version, pair.completed_by)
        if pair.version and pair.version != self._version:
            self.counts["other_version"] += 1
            return
        if self._monitor is None:
            self.counts["unmonitored"] += 1
            return
        try:
            rows, predictions = rows_and_predictions(pair.request.event, pair.response.event, self._monitor.reference.schema)
        except PayloadError as error:
            self.counts[f"unreadable {error.reason}"] += 1
            return
        self.counts["predictions"] += len(rows)
        all_rows, all_predictions, offsets, times = self._pending
        all_rows += rows
        all_predictions += predictions
        offsets += [pair.completed_by.offset] * len(rows)
        times += [pair.completed_by.timestamp] * len(rows)

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
        yield Notice("promoted", record.event.id, self._model, promotion.version, record.timestamp, data)
        yield from self._take_over(promotion.version, record)

    def _finished(self, record: Record) -> Iterator[Outcome]:
        data = decode_finished(record.event)
        self._governing.finished(data["run_id"])
        yield Notice("retraining_finished", record.event.id, self._model, data["version"], record.timestamp, data)

    def _take_over(self, version: str, record: Record) -> Iterator[Outcome]:
        """From this record on, `version` is the live one; without a reference it goes unmonitored, and says so."""
        self._version = version
        self._monitor, self._unmonitored = None, ""
        try:
            self._monitor = Monitor(self._spec, self._references(self._model, version), record.partition)
        except (VersionError, SettingsError) as error:
            self._unmonitored = str(error)
            id_ = events.deterministic_id("unmonitored", self._model, version, record.partition, record.offset)
            yield Notice("unmonitored", id_, self._model, version, record.timestamp, {"reason": self._unmonitored})

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
