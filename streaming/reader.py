"""Reading a stretch of the log in batches, from the oldest record to the newest that there was at the start."""

from collections.abc import Iterator, Mapping, Sequence

from inference.log import EventLog, Record

BATCH = 2000


def everything(event_log: EventLog) -> Iterator[list[Record]]:
    """Every record from the oldest to the newest there is at the time of the call."""
    until = event_log.end_positions()
    return between(event_log, event_log.start_positions(), until)


def between(event_log: EventLog, since: Mapping[int, int], until: Mapping[int, int]) -> Iterator[list[Record]]:
    """The records from the offset in `since` to before the one in `until`, of each partition in `since`."""
    positions = dict(since)
    # Partitions end one by one: what is new on one must not hide what is old on another.
    while unread := {partition: offset for partition, offset in positions.items() if offset < until.get(partition, 0)}:
        records = event_log.read(unread, BATCH)
        if not records:
            return
        positions = after(positions, records)
        if old := _before(records, until):
            yield old


def _before(records: list[Record], until: Mapping[int, int]) -> list[Record]:
    return [record for record in records if record.offset < until.get(record.partition, 0)]


def after(positions: Mapping[int, int], records: Sequence[Record]) -> dict[int, int]:
    """The positions once these records have been read."""
    reached = dict(positions)
    for record in records:
        reached[record.partition] = record.offset + 1
    return reached
