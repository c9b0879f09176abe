"""Tables as a source: features, predictions and a time column, read chunk by chunk against a reference, by column."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import SettingsError
from inference.versions import PREDICTION, Kind, Version
from streaming.core.reference import Floats, Values
from streaming.sources.frames import Frames, Times
from streaming.sources.seam import Stretch, Unreadable
from streaming.tables import Columns, cells_of, columns_of, lost_notes, lost_numbers, seconds_of_column

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next rows of a table; times are seconds since 1970 (the rows' numbers, from 0, where it has none)."""

    cells: Mapping[str, Values]
    times: Floats

    def part(self, start: int, stop: int) -> "Chunk":
        return Chunk({name: cells[start:stop] for name, cells in self.cells.items()}, self.times[start:stop])


class TableSource:
    """The rows of one table, which can be read once; `notes` is complete when all are read.

    What can't be read is counted in `unreadable`: lines, row groups, files, rows without a time. With `strict` it is a SettingsError
    instead. Rows that are not in the order of their times are one in any case: then nothing that follows would be right.
    """

    def __init__(
        self, frames: Frames, columns: Columns, *, time: str | None = None, stretch: Stretch | None = None, strict: bool = False
    ) -> None:
        self.name = frames.name
        self.unreadable = frames.unreadable
        self.notes = list(columns.notes)
        self.schema, self.reference = columns.schema, columns.reference
        self.timed = time is not None
        self._frames = frames
        self._columns = columns
        self._time = time
        self._stretch = stretch or Stretch()
        self._strict = strict
        self._newest = -math.inf
        self._lost = {name: 0 for name, kind in columns.kinds.items() if kind == "numeric"}
        by_time = math.isfinite(self._stretch.since) or math.isfinite(self._stretch.until)
        if by_time and time is None:
            raise SettingsError([f"{self.name}: --since and --until need the rows' times: name their column with --time"])

    def __iter__(self) -> Iterator[Chunk]:
        stretch, time = self._stretch, self._time
        # By offset the rows are counted, so that all of them must be read.
        pruned = Times(time, stretch.since, stretch.until) if time is not None and not stretch.by_offset else None
        wanted = [*self._columns.kinds, *([time] if time is not None else [])]
        for first, frame in self._frames.chunks(wanted, self._columns.texts, pruned):
            chunk = self._chunk(first, frame)
            if len(chunk.times):
                yield chunk
            if self._newest >= stretch.until:
                break
        self.notes += lost_notes(self._lost)

    def _chunk(self, first: int, frame: "pandas.DataFrame") -> Chunk:
        rows = np.arange(first, first + len(frame))
        times = rows.astype(np.float64) if self._time is None else self._checked(frame, rows)
        kept = self._asked(rows, times)
        if not kept.all():
            frame, times = frame[kept], times[kept]
        cells = {name: cells_of(frame[name], kind) for name, kind in self._columns.kinds.items()}
        for name in self._lost:
            self._lost[name] += lost_numbers(frame[name], cells[name])
        return Chunk(cells, times)

    def _checked(self, frame: "pandas.DataFrame", rows: Values) -> Floats:
        """The rows' times, NaN where there is none."""
        name = str(self._time)
        times = seconds_of_column(frame[name], self.name, name, lenient=not self._strict)
        untold = np.isnan(times)
        for row in rows[untold]:
            if self._strict:
                raise SettingsError([f"{self.name}: row {row + 1} has no time in column {name!r}"])
            self.unreadable.add(f"{self.name}: row {row + 1}", f"no time in column {name!r}")
        known = times[~untold]
        steps = np.diff(known, prepend=self._newest)
        if (steps < 0).any():
            row = rows[~untold][int((steps < 0).argmax())]
            raise SettingsError([f"{self.name}: row {row + 1} is older than the one before it by {name!r}; sort the rows"])
        if len(known):
            self._newest = float(known[-1])
        return times

    def _asked(self, rows: Values, times: Floats) -> Any:
        """Which rows are of the stretch: a table is one partition, 0, and a row's number its offset."""
        stretch = self._stretch
        kept = (times >= stretch.since) & (times < stretch.until) & ~np.isnan(times)
        if stretch.by_offset:
            kept &= stretch.of_partition(0) & (rows >= stretch.first.get(0, 0)) & (rows < stretch.end.get(0, 2**62))
        return kept


def open_table(
    table: str | Path,
    reference: str | Path | Version,
    *,
    time: str | None = None,
    ignore: Sequence[str] = (),
    stretch: Stretch | None = None,
    strict: bool = False,
) -> TableSource:
    """The rows of `table` to be judged by `reference`: other rows, of a time when all was well, or a version's. SettingsError says what
    does not fit."""
    frames = Frames(table, None if strict else Unreadable())
    if isinstance(reference, Version):
        columns = _columns_of_version(reference, frames, time, ignore)
    else:
        known = Frames(reference)
        columns = columns_of(known.whole(), known.name, frames.columns, frames.name, time=time, ignore=ignore)
    return TableSource(frames, columns, time=time, stretch=stretch, strict=strict)


def _columns_of_version(version: Version, frames: Frames, time: str | None, ignore: Sequence[str]) -> Columns:
    """The features of the version's schema, and its predictions where the table has them."""
    schema = version.schema
    kinds: dict[str, Kind] = {feature.name: feature.kind for feature in schema.features}
    lacking = [name for name in kinds if name not in frames.columns]
    problems = [f"{frames.name}: lacks the features {', '.join(lacking)} of {version.model} version {version.version}"] if lacking else []
    if time is not None and time not in frames.columns:
        problems.append(f"{frames.name}: there is no column {time!r} for --time; it has {', '.join(frames.columns)}")
    if problems:
        raise SettingsError(problems)
    if PREDICTION in frames.columns and PREDICTION not in ignore:
        kinds[PREDICTION] = schema.prediction
    sample = version.load_reference()
    cells = {name: _stored(sample[name], kind) for name, kind in kinds.items()}
    texts = frozenset(name for name, kind in kinds.items() if kind == "categorical")
    more = [name for name in frames.columns if name not in kinds and name != time and name not in ignore]
    notes = (f"{', '.join(more)}: not among the features, left out",) if more else ()
    return Columns(schema, kinds, cells, texts & {name for name in kinds if _holds_texts(sample[name])}, notes)


def _holds_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values if value is not None)


def _stored(values: Sequence[Any], kind: Kind) -> Values:
    import pandas

    return cells_of(pandas.Series(values, dtype=np.float64 if kind == "numeric" else object), kind)
