"""A feed with one member: it owns every partition of its log from the first poll to the end."""

from collections.abc import Mapping

from inference.log import EventLog, Owner, Record


class EmbeddedFeed:
    """A `Feed` over a log that only this process follows; that it is the only one is for the caller to see to."""

    def __init__(self, log: EventLog, owner: Owner) -> None:
        self._log = log
        self._owner = owner
        self._positions: dict[int, int] | None = None

    def poll(self, limit: int, timeout: float) -> list[Record]:
        if self._positions is None:
            oldest = self._log.start_positions()
            self._positions = {**oldest, **self._owner.assigned(sorted(oldest))}
        records = self._log.read(self._positions, limit)
        if not records and timeout > 0 and self._log.wait_for(self._positions, timeout):
            records = self._log.read(self._positions, limit)
        for record in records:
            self._positions[record.partition] = record.offset + 1
        return records

    def commit(self, positions: Mapping[int, int]) -> None:
        """There is no broker that keeps them."""

    def owns(self, partition: int) -> bool:
        return self._positions is not None and partition in self._positions

    def close(self) -> None:
        positions, self._positions = self._positions, None
        if positions is not None:
            self._owner.revoked(sorted(positions))
