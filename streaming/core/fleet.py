"""All models of one consumer: takes records in log order, gives verdicts, decisions and notices.

Each partition is a state machine of its own. Its outcomes depend on its records and their order alone: not on where a batch
is cut, not on a clock, not on who feeds it. That is why a replay says what the live consumer said, and why a consumer that
restores a partition's state and feeds it the records from there on says what an undisturbed one says.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from inference.errors import SnapshotError
from inference.log import Record
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.stream import ModelStream, MonitorOf, References
from streaming.core.verdict import Notice, Outcome

State = dict[str, Any]
"""Plain values: None, bool, int, float, str, bytes, and lists and dicts (with str keys) of them."""

_UNKNOWN = 1000
"""Names of models nobody configured that are counted one by one on a partition."""


class _State(BaseModel):
    version: Literal[1]
    models: dict[str, dict[str, Any]]
    unknown: dict[str, int]


@dataclass(slots=True)
class _Partition:
    streams: dict[str, ModelStream] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)


class Fleet:
    """Routes each record to its model. A model no spec is given for is counted and left alone."""

    def __init__(
        self,
        specs: Mapping[str, MonitorSpec],
        references: References,
        *,
        live: Callable[[str], str | None],
        annotation: str,
        monitor: MonitorOf = Monitor,
    ) -> None:
        """`live` names the version to take for granted when neither a promotion nor an annotation has named one; `monitor` makes a
        version's monitor."""
        self._specs = dict(specs)
        self._references = references
        self._live = live
        self._annotation = annotation
        self._monitor = monitor
        self._partitions: dict[int, _Partition] = {}

    def feed(self, records: Sequence[Record]) -> list[Outcome]:
        """The outcomes of these records, in order per model and partition."""
        stretches: dict[tuple[int, str], list[Record]] = {}
        for record in records:
            stretches.setdefault((record.partition, record.event.model), []).append(record)
        outcomes: list[Outcome] = []
        for (number, model), stretch in stretches.items():
            partition = self._partitions.setdefault(number, _Partition())
            if model in self._specs:
                stream = partition.streams.get(model) or partition.streams.setdefault(model, self._stream(model, number))
                outcomes += stream.feed(stretch)
            elif model in partition.unknown or len(partition.unknown) < _UNKNOWN:
                partition.unknown[model] += len(stretch)
            else:
                partition.unknown["(others)"] += len(stretch)
        return outcomes

    def state(self, partition: int) -> State:
        """All that the outcomes of the partition's next records depend on; the same for the same records so far."""
        held = self._partitions.get(partition) or _Partition()
        return {
            "version": 1,
            "models": {model: stream.state() for model, stream in held.streams.items()},
            "unknown": dict(held.unknown),
        }

    def restore(self, partition: int, state: Mapping[str, Any]) -> list[Notice]:
        """Go on from what `state` gave, in place of all that is held of the partition.

        References are not in it: they are read again. The notices tell what could not go on: versions whose reference
        can't be read, and monitors that start anew because their window or limits are no longer the same. A model that is
        no longer configured is dropped. SnapshotError: this is no such state; then nothing is held of the partition.
        """
        self.forget(partition)
        held = _Partition()
        notices: list[Notice] = []
        try:
            known = _State.model_validate(state)
            held.unknown.update({model: count for model, count in known.unknown.items() if model not in self._specs})
            for model, memory in known.models.items():
                if model in self._specs:
                    held.streams[model] = self._stream(model, partition)
                    notices += held.streams[model].restore(memory)
        except (ValueError, OverflowError) as error:
            raise SnapshotError(
                f"the snapshot of partition {partition} holds no state that this driftloop knows: {_short(error)}"
            ) from error
        self._partitions[partition] = held
        return notices

    def forget(self, partition: int) -> None:
        """Let go of all that is held of the partition."""
        self._partitions.pop(partition, None)

    def status(self) -> dict[str, Any]:
        """Where every model stands, as plain JSON values."""
        unknown = sum((partition.unknown for partition in self._partitions.values()), Counter[str]())
        return {"models": {model: self._status(model) for model in self._specs}, "unknown_models": dict(unknown)}

    def _status(self, model: str) -> dict[str, Any]:
        """Its newest stream's, with the counts of all: a model stands on two partitions when their number has been raised."""
        streams = [partition.streams[model] for partition in self._partitions.values() if model in partition.streams]
        if not streams:
            return self._stream(model, 0).status()
        newest = max(streams, key=lambda stream: stream.newest.time)
        return {**newest.status(), "counts": _summed(stream.status()["counts"] for stream in streams)}

    def _stream(self, model: str, partition: int) -> ModelStream:
        return ModelStream(model, partition, self._specs[model], self._references, self._live, self._annotation, self._monitor)


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _short(error: Exception) -> str:
    """What is wrong and where, without the value: it may be of somebody's prediction."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
