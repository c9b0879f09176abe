"""A quiet stretch of history as rows of one model version: from a table, or from an event log through the fleet that judges it."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inference.errors import SettingsError
from inference.log import EventLog
from streaming.calibrate import QuietRows
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import Judge
from streaming.core.monitor import MonitorSpec
from streaming.core.reference import Reference
from streaming.core.verdict import Finding
from streaming.core.window import CountWindow, Rows, SlidingWindow
from streaming.reader import everything
from streaming.tables import read_rows

MOST_ROWS = 1_000_000
_LOOK = 10_000
_TABLES = frozenset({".csv", ".parquet", ".pq", ".tsv"})


def is_table(source: str) -> bool:
    """Whether it names a file of rows and no log."""
    return "://" not in source and not _TABLES.isdisjoint(Path(source).suffixes)


def from_table(path: Path, reference: Reference, time: str | None) -> QuietRows:
    """The rows of a table with the reference's columns."""
    cells, times = read_rows(path, {column.name: column.kind for column in reference.columns}, time)
    return QuietRows([cells[column.name] for column in reference.columns], times, str(path))


def from_log(event_log: EventLog, source: str, reference: Reference, annotation: str) -> QuietRows:
    """The predictions of the reference's model and version on a log, the newest million of them."""
    kept = _Kept(reference.version)

    def only(model: str, version: str) -> Reference:
        # A version that is not asked for has no one to hear of it: its rows go by what the asked one takes.
        return Reference(model, version, reference.schema, reference.columns, reference.codes)

    spec = MonitorSpec(CountWindow(_LOOK, _LOOK), (kept,), Governor())
    fleet = Fleet({reference.model: spec}, only, live=lambda model: reference.version, annotation=annotation)
    for records in everything(event_log):
        fleet.feed(records)
    if not kept.rows:
        raise SettingsError([f"{source}: no prediction of {reference.model}, version {reference.version}"])
    cells = [np.concatenate([rows.cells[place] for rows in kept.rows]) for place in range(len(reference.columns))]
    return QuietRows(cells, np.concatenate([rows.times for rows in kept.rows]), source)


@dataclass
class _Kept:
    """A limit that is never over and keeps the rows of one version, as they come."""

    version: str
    name: str = "kept"
    fingerprint: str = "kept"
    rows: deque[Rows] = field(default_factory=deque)
    _count: int = 0

    def build(self, reference: Reference, size: int) -> Judge:
        return _Keeping(self if reference.version == self.version else _Kept(self.version))

    def keep(self, rows: Rows) -> None:
        self.rows.append(rows)
        self._count += len(rows)
        while self._count - len(self.rows[0]) >= MOST_ROWS:
            self._count -= len(self.rows.popleft())


class _Keeping:
    def __init__(self, kept: _Kept) -> None:
        self._kept = kept

    def observe(self, rows: Rows) -> Sequence[int]:
        self._kept.keep(rows)
        return ()

    def judge(self, window: SlidingWindow) -> tuple[list[Finding], bool]:
        return [], False

    def began(self, window: SlidingWindow) -> int | None:
        return None

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> str:
        return ""
