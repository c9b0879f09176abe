"""An event log as a source: the embedded one, a topic, an event hub; read by positions, in no group, so that no live reader notices."""

from collections.abc import Iterator

from inference.log import EventLog, Record
from inference.log.kafka_records import UNREADABLE
from streaming.reader import between
from streaming.sources.seam import Stretch, Unreadable


class LogSource:
    """What stood on the log when the reading began, or the stretch of it."""

    def __init__(self, event_log: EventLog, name: str, stretch: Stretch) -> None:
        self.name = name
        self.unreadable = Unreadable()
        self.notes: list[str] = []
        self._log = event_log
        self._stretch = stretch

    def __iter__(self) -> Iterator[list[Record]]:
        for records in between(self._log, *self._bounds()):
            for record in records:
                if record.event.type == UNREADABLE:
                    self.unreadable.add(f"{record.partition}:{record.offset}", record.event.extensions.get("reason", ""))
            yield records

    @property
    def expected(self) -> int:
        """Records to come, those that expired meanwhile among them."""
        first, end = self._bounds()
        return sum(max(0, end[number] - first[number]) for number in first)

    def _bounds(self) -> tuple[dict[int, int], dict[int, int]]:
        """From where to where each partition is read."""
        stretch = self._stretch
        starts, ends = self._log.start_positions(), self._log.end_positions()
        first = {**starts, **self._log.positions_at(stretch.since)} if stretch.since > 0 else dict(starts)
        end = {**ends, **self._log.positions_at(stretch.until)} if stretch.until < float("inf") else dict(ends)
        wanted = [number for number in starts if stretch.of_partition(number)]
        return (
            {number: max(starts[number], first[number], stretch.first.get(number, 0)) for number in wanted},
            {number: min(ends[number], end[number], stretch.end.get(number, ends[number])) for number in wanted},
        )
