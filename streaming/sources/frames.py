"""Tables in files, CSV or Parquet, as pandas frames of a bounded number of rows: what can't be read of them is told and left out."""

import bz2
import lzma
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import SettingsError
from streaming.sources.files import BROKEN, File, files_of, opened, shown
from streaming.sources.seam import Unreadable

if TYPE_CHECKING:
    import pandas

CHUNK = 20_000
"""Rows of a frame, at most."""

PARQUET = (".parquet", ".pq")
SUFFIXES = (*PARQUET, ".csv", ".csv.gz", ".csv.zst", ".csv.bz2", ".csv.xz", ".csv.zip")
_SKIPPED = re.compile(r"Skipping line (\d+): (.+)")


class Frames:
    """The rows of one table, which may be several files of the same columns, in the order of their names.

    SettingsError: there is no such table, or its columns are not those of one. With `unreadable` a file, a row group or a line that
    can't be read is counted there and left out; without, it is a SettingsError.
    """

    def __init__(self, url: str | Path, unreadable: Unreadable | None = None) -> None:
        self.name = shown(str(url))
        self._lenient = unreadable is not None
        self.unreadable = unreadable or Unreadable()
        self._files = files_of(str(url), SUFFIXES)
        self._row = 0
        self.columns = self._columns(self._files[0])
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise SettingsError([f"{self.name}: more than one column is named {', '.join(twice)}"])

    def whole(self) -> "pandas.DataFrame":
        """All rows at once, as pandas takes their types to be: for a reference."""
        import pandas

        frames = [self._whole(file) for file in self._files]
        frame = frames[0] if len(frames) == 1 else pandas.concat(frames, ignore_index=True)
        frame.columns = [str(name) for name in frame.columns]
        return frame

    def chunks(
        self, columns: Sequence[str], texts: Collection[str] = (), times: "Times | None" = None
    ) -> Iterator[tuple[int, "pandas.DataFrame"]]:
        """These columns, `texts` of them as text whatever they look like, with the number of each frame's first row, from 0. What `times`
        rules out for certain is not read."""
        self._row = 0
        for file in self._files:
            try:
                with self._named(file):
                    found = self._parquet(file, columns, times) if file.path.endswith(PARQUET) else self._csv(file, columns, texts)
                    for frame in found:
                        yield self._row, frame
                        self._row += len(frame)
            except SettingsError as error:
                if not self._lenient:
                    raise
                self.unreadable.add(file.name, str(error))

    def _columns(self, file: File) -> list[str]:
        with self._named(file):
            if file.path.endswith(PARQUET):
                import pyarrow.parquet

                with file.fs.open(file.path, "rb") as stream:
                    return list(pyarrow.parquet.ParquetFile(stream).schema_arrow.names)
            import pandas

            with self._text(file) as stream:
                # Without a header's names, so that two of the same are seen.
                head = pandas.read_csv(stream, header=None, nrows=1, dtype=str)
            return [str(name) for name in head.iloc[0]]

    def _whole(self, file: File) -> "pandas.DataFrame":
        import pandas

        with self._named(file):
            if file.path.endswith(PARQUET):
                with file.fs.open(file.path, "rb") as stream:
                    return pandas.read_parquet(stream)
            with self._text(file) as stream:
                return pandas.read_csv(stream, low_memory=False, float_precision="round_trip")

    def _csv(self, file: File, columns: Sequence[str], texts: Collection[str]) -> Iterator["pandas.DataFrame"]:
        import pandas

        lenient: Mapping[str, Any] = {"on_bad_lines": "warn"} if self._lenient else {}
        dtype: Any = dict.fromkeys(texts, str)
        with self._text(file) as stream:
            reader = pandas.read_csv(stream, dtype=dtype, chunksize=CHUNK, low_memory=False, float_precision="round_trip", **lenient)
            while True:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always", pandas.errors.ParserWarning)
                    frame = next(reader, None)
                self._skipped(file, said)
                if frame is None:
                    return
                # Not left to pandas, which then takes no notice of a line with too many fields.
                yield frame[list(columns)]

    def _skipped(self, file: File, said: Sequence[warnings.WarningMessage]) -> None:
        for number, text in _SKIPPED.findall("\n".join(str(one.message) for one in said)):
            self.unreadable.add(f"{file.name}:{number}", text)

    def _parquet(self, file: File, columns: Sequence[str], times: "Times | None") -> Iterator["pandas.DataFrame"]:
        import pyarrow.parquet

        with file.fs.open(file.path, "rb") as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            for group in range(table.num_row_groups):
                if times is not None and not times.may_hold(table.metadata.row_group(group)):
                    self._row += table.metadata.row_group(group).num_rows
                    continue
                done = 0
                try:
                    for batch in table.iter_batches(CHUNK, row_groups=[group], columns=list(columns)):
                        done += batch.num_rows
                        yield batch.to_pandas()
                except (OSError, ValueError) as error:
                    if not self._lenient:
                        raise
                    lost = table.metadata.row_group(group).num_rows - done
                    self.unreadable.add(f"{file.name}: row group {group}", str(error), lost)
                    self._row += lost

    @contextmanager
    def _text(self, file: File) -> Iterator[Any]:
        """The file as text that is not packed, however it was."""
        if file.path.endswith((".bz2", ".xz", ".zip")):
            with file.fs.open(file.path, "rb") as raw:
                yield _unpacked(raw, file.path)
        else:
            with opened(file) as stream:
                yield stream

    @contextmanager
    def _named(self, file: File) -> Iterator[None]:
        """What pandas and pyarrow raise on a file they can't read, with its name."""
        try:
            yield
        except (*BROKEN, ValueError, LookupError, lzma.LZMAError, zipfile.BadZipFile) as error:
            kind = "Parquet" if file.path.endswith(PARQUET) else "CSV"
            raise SettingsError([f"{file.name}: cannot be read as {kind}: {error}"]) from error


def _unpacked(raw: Any, path: str) -> Any:
    if path.endswith(".bz2"):
        return bz2.BZ2File(raw)
    if path.endswith(".xz"):
        return lzma.LZMAFile(raw)
    archive = zipfile.ZipFile(raw)
    (name,) = archive.namelist()
    return archive.open(name)


class Times:
    """Which row groups of a Parquet file can be left out: those that say of their times that none is in a stretch."""

    def __init__(self, column: str, since: float, until: float) -> None:
        self._column = column
        self._since = since
        self._until = until

    def may_hold(self, group: Any) -> bool:
        for place in range(group.num_columns):
            column = group.column(place)
            if column.path_in_schema == self._column:
                told = column.statistics
                if told is None or not told.has_min_max:
                    return True
                low, high = _as_seconds(told.min), _as_seconds(told.max)
                return low is None or high is None or (high >= self._since and low < self._until)
        return True


def _as_seconds(value: Any) -> float | None:
    """None: it can't be told."""
    from datetime import UTC, datetime

    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value) if isinstance(value, int | float) else None
