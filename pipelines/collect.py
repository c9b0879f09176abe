"""Collect labelled rows to train on: from a table, or from the event log by joining predictions with their labels."""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference.errors import DriftloopError, LogError, LogUnavailable, PayloadError, PipelineError, SettingsError, TooLittleData
from inference.event import LABEL, REQUEST, RESPONSE
from inference.log import EventLog, Record, open_log
from inference.pairing import Pair, Pairing
from inference.payload import aligned, category, decode_label, decode_request
from inference.versions import PREDICTION, Feature, Kind, Schema, Version
from pipelines.joining import Join, Labelled, Prediction
from pipelines.tables import Table, answers, is_missing, make_frame, plain_value

logger = logging.getLogger(__name__)

TABLES = (".csv", ".parquet")
_BATCH = 2000
_POLL = 0.5
_CLASSES_OF_A_NUMBER = 20
"""A target of whole numbers with more different values than this is taken for a quantity, not for classes."""


def is_table(data: str) -> bool:
    return data.lower().endswith(TABLES)


def from_table(path: Path, *, live: Version | None, target: str, min_rows: int, max_rows: int) -> Table:
    """The rows of a CSV or parquet file. The schema is the live version's; without one it is inferred from the columns."""
    frame = _read(path)
    target = target or (live.schema.target if live is not None else "target")
    if target not in frame.columns:
        raise PipelineError(f"{path}: there is no column {target!r} to learn; the columns are {', '.join(map(str, frame.columns))}")
    total = len(frame)
    frame = frame[frame[target].notna()]
    if len(frame) < max(1, min_rows):
        raise TooLittleData(f"{path}: {len(frame)} of {total} rows have a value in {target!r}; at least {max(1, min_rows)} are needed")
    labelled = len(frame)
    frame = frame.tail(max_rows)
    schema = _live_schema(live, target) if live is not None else infer_schema(frame, target)
    missing = [name for name in schema.names if name not in frame.columns]
    if missing:
        raise PipelineError(f"{path}: the columns {missing} are missing; the live version's features are {', '.join(schema.names)}")
    cells = {name: frame[name].tolist() for name in (*schema.names, target)}
    try:
        made = make_frame(cells, schema)
    except (TypeError, ValueError) as error:
        raise PipelineError(f"{path}: a column that should hold numbers does not: {error}") from error
    span = {"data": path.name, "rows": len(made), "counts": {"rows": total, "rows_without_label": total - labelled}}
    return Table(made, schema, span, ordered=False)


def _read(path: Path) -> Any:
    import pandas

    if not path.is_file():
        raise PipelineError(f"{path}: there is no such table; give a .csv or .parquet file, or an event log")
    try:
        frame = pandas.read_csv(path) if path.suffix.lower() == ".csv" else pandas.read_parquet(path)
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read: {error}") from error
    frame.columns = [str(name) for name in frame.columns]
    return frame


def infer_schema(frame: Any, target: str) -> Schema:
    """Number columns are numeric, all others categorical; a target is numeric when it is fractional or has many values."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    def kind(name: str) -> Kind:
        return "numeric" if is_numeric_dtype(frame[name]) and not is_bool_dtype(frame[name]) else "categorical"

    features = tuple(Feature(str(name), kind(str(name))) for name in frame.columns if name != target)
    values = frame[target]
    quantity = kind(target) == "numeric" and (values.nunique() > _CLASSES_OF_A_NUMBER or not (values % 1 == 0).all())
    return Schema(features, "numeric" if quantity else "categorical", target)


def _live_schema(live: Version, target: str) -> Schema:
    schema = live.schema
    return schema if target in ("", schema.target) else Schema(schema.features, schema.prediction, target)


def from_log(
    url: str,
    *,
    live: Version,
    target: str,
    since_offset: int,
    min_rows: int,
    max_rows: int,
    wait_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Table:
    """The newest `max_rows` labelled predictions of `live.model`, whichever version made them, from `since_offset` of its partition on.

    Labels come late: as long as there are fewer than `min_rows`, the log is read on for up to `wait_seconds`; then
    TooLittleData says how many there were. Unreadable events and labels without a prediction are counted, never fatal.
    """
    try:
        log = open_log(url, must_exist=True)
    except (LogError, SettingsError) as error:
        raise PipelineError(
            f"{url}: there is no event log to read ({error}); give the gateway's log, or a .csv or .parquet table"
        ) from error
    try:
        reading = _Reading(log, live, _live_schema(live, target), since_offset)
        deadline = clock() + wait_seconds
        while True:
            if reading.advance():
                table = reading.table(max_rows)
                if len(table.frame) >= max(1, min_rows):
                    logger.info("%s: %d labelled rows: %s", live.model, len(table.frame), table.span["counts"])
                    return table
            if clock() >= deadline:
                raise TooLittleData(
                    f"{live.model}: {reading.usable} labelled rows on the log since offset {reading.since} after waiting "
                    f"{wait_seconds:g} s; at least {max(1, min_rows)} are needed ({reading.summary()})"
                )
            sleep(min(_POLL, max(0.0, deadline - clock())))
    finally:
        log.close()


class _Reading:
    """One pass over the model's partition, which can go on when more has come."""

    def __init__(self, log: EventLog, live: Version, schema: Schema, since_offset: int) -> None:
        self._log = log
        self._live = live
        self._schema = schema
        self._partition = log.partition_of(live.model)
        start = log.start_positions().get(self._partition, 0)
        self.since = start if since_offset < 0 else max(start, since_offset)
        self._position = self.since
        self._pairing = Pairing()
        self._join = Join()
        self._unreadable: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._begun = False
        self.usable = 0

    def advance(self) -> bool:
        """Read to where the log ends now; whether there was anything to look at since the last time.

        What comes meanwhile is for the next time: on a busy log there would be no end.
        """
        news, self._begun = not self._begun, True
        try:
            end = self._log.end_positions().get(self._partition, 0)
            while self._position < end:
                records = self._log.read({self._partition: self._position}, _BATCH)
                if not records:
                    break
                news = self._take_all(records) or news
        except LogUnavailable as error:  # the caller polls again, within its deadline
            logger.warning("the log cannot be read now: %s", error)
        return news

    def _take_all(self, records: list[Record]) -> bool:
        news = False
        for record in records:
            self._position = record.offset + 1
            if record.event.model == self._live.model:
                news = True
                self._take(record)
        return news

    def _take(self, record: Record) -> None:
        try:
            if record.event.type in (REQUEST, RESPONSE):
                pair = self._pairing.add(record)
                if pair is not None:
                    self._join.add_prediction(self._prediction(pair))
            elif record.event.type == LABEL:
                self._join.add_label(decode_label(record.event))
        except PayloadError as error:
            self._unreadable[error.reason] += 1

    def _prediction(self, pair: Pair) -> Prediction:
        rows = aligned(decode_request(pair.request.event), self._schema)
        done = pair.completed_by
        return Prediction(pair.id, pair.source, rows, done.offset, done.timestamp)

    def table(self, max_rows: int) -> Table:
        """The newest usable rows so far."""
        rows, counts = self._join.join()
        usable: deque[Labelled] = deque(maxlen=max_rows)
        for row in rows:
            if _usable(row, self._schema):
                usable.append(row)
            else:
                counts["rows_of_wrong_kind"] += 1
        self.usable = len(usable)
        self._counts = counts
        columns: dict[str, Any] = {name: [row.cells[i] for row in usable] for i, name in enumerate(self._schema.names)}
        columns[self._schema.target] = _labels([row.label for row in usable], self._live, self._schema)
        return Table(make_frame(columns, self._schema), self._schema, self._span(usable), ordered=True)

    def _span(self, rows: "deque[Labelled]") -> dict[str, Any]:
        span: dict[str, Any] = {"data": "log", "partition": self._partition, "since_offset": self.since, "rows": len(rows)}
        if rows:
            span["offsets"] = [rows[0].offset, rows[-1].offset]
            span["timestamps"] = [rows[0].timestamp, rows[-1].timestamp]
        counts = dict(self._counts)
        if self._unreadable:
            counts.update({f"unreadable_{reason}": n for reason, n in self._unreadable.items()})
        return {**span, "counts": counts}

    def summary(self) -> str:
        counts = self._counts + Counter({f"unreadable_{reason}": n for reason, n in self._unreadable.items()})
        return ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) or "nothing there for this model"


def _usable(row: Labelled, schema: Schema) -> bool:
    return all(_fits(cell, feature.kind) for cell, feature in zip(row.cells, schema.features, strict=True)) and (
        _fits(row.label, schema.prediction) and not is_missing(row.label)
    )


def _fits(cell: Any, kind: Kind) -> bool:
    """A missing value fits anywhere; the estimator imputes or refuses it."""
    if is_missing(cell):
        return True
    if kind == "categorical":
        return isinstance(cell, str | int | float)
    try:
        return isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell)
    except OverflowError:
        return False


def _labels(labels: list[Any], live: Version, schema: Schema) -> list[Any]:
    """Classes in the type in which the live version answers, so that a retrained model does not change what clients receive."""
    if schema.prediction == "numeric":
        return labels
    plain = list(answers(labels, "categorical"))
    try:
        known = {type(value) for value in map(plain_value, live.load_reference()[PREDICTION]) if value is not None}
    except DriftloopError as error:
        logger.warning("the live version's answers cannot be read, so labels keep their own type: %s", error)
        return plain
    if known == {int} and all(isinstance(label, str) and label.removeprefix("-").isdecimal() for label in plain):
        return [int(label) for label in plain]
    return [category(label) for label in plain] if known == {str} else plain
