"""Tables of predictions as columns: CSV (also compressed) and Parquet, types inferred, what is no feature set aside and named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import SettingsError
from inference.payload import category
from inference.versions import PREDICTION, Feature, Kind, Schema
from streaming.core.reference import Values

if TYPE_CHECKING:
    import pandas

_IDENTIFYING = 0.9
"""A text column of which this share of the values is different identifies its rows."""
_ROWS_TO_TELL = 30


@dataclass(frozen=True, slots=True)
class Tables:
    """A reference and the rows to judge, as cells of the same columns; `times` in seconds since 1970 (row numbers without a time column).

    `notes` says what was left out, and why.
    """

    schema: Schema
    reference: dict[str, Values]
    rows: dict[str, Values]
    times: Values
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Columns:
    """What a table is judged by: its columns with their kinds, and rows of a time when all was well in them.

    `texts` are the categorical columns that hold texts; `notes` says what was left out, and why.
    """

    schema: Schema
    kinds: Mapping[str, Kind]
    reference: dict[str, Values]
    texts: frozenset[str]
    notes: tuple[str, ...]


def read_tables(table: Path, reference: Path, *, time: str | None = None, ignore: Sequence[str] = ()) -> Tables:
    """Read both; the reference tells the columns and their types. SettingsError says what can't be read, or does not fit.

    Numbers are numeric, all else is categorical. Dates and identifiers (texts that hardly repeat, numbers that only rise) are no
    features: they are left out with a note. A column named `prediction` is the model's answers.
    """
    known, judged = _frame(reference), _frame(table)
    columns = columns_of(known, str(reference), [*judged.columns], str(table), time=time, ignore=ignore)
    rows = {name: cells_of(judged[name], kind) for name, kind in columns.kinds.items()}
    lost = {name: lost_numbers(judged[name], rows[name]) for name, kind in columns.kinds.items() if kind == "numeric"}
    times = times_of(judged[time], str(table), time) if time else np.arange(len(judged), dtype=np.float64)
    return Tables(columns.schema, columns.reference, rows, times, [*columns.notes, *lost_notes(lost)])


def columns_of(
    known: "pandas.DataFrame",
    reference: str,
    judged: Sequence[str],
    table: str,
    *,
    time: str | None = None,
    ignore: Sequence[str] = (),
) -> Columns:
    """The reference's columns that are features, and the model's answers; `judged` are the names of the table's columns, `reference` and
    `table` what both are called. SettingsError as `read_tables`."""
    problems = [f"{table}: there is no column {time!r} for --time; it has {', '.join(judged)}"] if time and time not in judged else []
    absent = [name for name in ignore if name not in known and name not in judged]
    if absent:
        problems.append(f"--ignore {', '.join(absent)}: no such column in {table} or {reference}")
    wanted = [str(name) for name in known.columns if name not in ignore and name != time]
    lacking = [name for name in wanted if name not in judged]
    if lacking:
        problems.append(f"{table}: lacks the reference's columns {', '.join(lacking)}; add them, or leave them out with --ignore")
    if problems:
        raise SettingsError(problems)
    notes = []
    kinds: dict[str, Kind] = {}
    for name in wanted:
        reason = _no_feature(known[name])
        if reason:
            notes.append(f"{name} is left out: {reason}")
        else:
            kinds[name] = "numeric" if _is_numeric(known[name]) else "categorical"
    if not kinds or not len(known):
        raise SettingsError([f"{reference}: {'no column is a feature' if len(known) else 'has no rows'}; {'; '.join(notes)}".rstrip("; ")])
    more = [name for name in judged if name not in known and name != time and name not in ignore]
    if more:
        notes.append(f"{', '.join(more)}: not in the reference, left out")
    features = tuple(Feature(name, kind) for name, kind in kinds.items() if name != PREDICTION)
    if not features:
        raise SettingsError([f"{reference}: no feature beside {PREDICTION!r}"])
    schema = Schema(features, kinds.get(PREDICTION, "numeric"), "")
    sample = {name: cells_of(known[name], kind) for name, kind in kinds.items()}
    texts = frozenset(name for name, kind in kinds.items() if kind == "categorical" and _holds_texts(known[name]))
    return Columns(schema, kinds, sample, texts, tuple(notes))


def lost_numbers(column: "pandas.Series[Any]", cells: Values) -> int:
    """How many values of a numeric column are there and are no numbers."""
    return int(column.notna().sum()) - int((~np.isnan(cells)).sum())


def lost_notes(lost: Mapping[str, int]) -> list[str]:
    """Told of `lost_numbers`, by column."""
    return [f"{name}: {count} values are no numbers and count as missing" for name, count in lost.items() if count]


def read_rows(table: Path, kinds: Mapping[str, Kind], time: str | None = None) -> tuple[dict[str, Values], Values | None]:
    """The rows of a file as cells of these columns, with their times in seconds since 1970 where there is a column of times.

    SettingsError when the file can't be read, has no rows or lacks a column.
    """
    frame = _frame(table)
    lacking = [name for name in [*kinds, *([time] if time else [])] if name not in frame]
    if lacking or not len(frame):
        told = f"lacks the columns {', '.join(lacking)}; it has {', '.join(map(str, frame.columns))}" if lacking else "has no rows"
        raise SettingsError([f"{table}: {told}"])
    return {name: cells_of(frame[name], kind) for name, kind in kinds.items()}, times_of(frame[time], str(table), time) if time else None


def _frame(path: Path) -> "pandas.DataFrame":
    import pandas

    try:
        frame = (
            pandas.read_parquet(path)
            if path.suffix in (".parquet", ".pq")
            else pandas.read_csv(path, low_memory=False, float_precision="round_trip")
        )
    except FileNotFoundError:
        raise SettingsError([f"{path}: there is no such file"]) from None
    except Exception as error:
        raise SettingsError([f"{path}: cannot be read as {'Parquet' if path.suffix in ('.parquet', '.pq') else 'CSV'}: {error}"]) from error
    frame.columns = [str(name) for name in frame.columns]
    twice = sorted({name for name in frame.columns if list(frame.columns).count(name) > 1})
    if twice:
        raise SettingsError([f"{path}: more than one column is named {', '.join(twice)}"])
    return frame


def _is_numeric(column: "pandas.Series[Any]") -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return bool(is_numeric_dtype(column.dtype) and not is_bool_dtype(column.dtype)) or not column.notna().any()


def _holds_texts(column: "pandas.Series[Any]") -> bool:
    known = column.dropna()
    return len(known) > 0 and all(isinstance(value, str) for value in known)


def _no_feature(column: "pandas.Series[Any]") -> str:
    """Why the column is no feature; "" if it is one."""
    from pandas.api.types import is_datetime64_any_dtype

    if is_datetime64_any_dtype(column.dtype):
        return "it holds dates (name it with --time if it is the rows' time)"
    known = column.dropna()
    if len(known) < _ROWS_TO_TELL:
        return ""
    if _is_numeric(column):
        values = known.to_numpy(dtype=np.float64)
        rising = len(known) == len(column) and bool((np.diff(values) > 0).all())
        return "its numbers only rise, as a time's or a row number's do" if rising else ""
    if known.nunique() >= _IDENTIFYING * len(known):
        return "its texts hardly repeat, as dates and identifiers do"
    return ""


def cells_of(column: "pandas.Series[Any]", kind: Kind) -> Values:
    """As `Column.array` makes them: float64 with NaN, or objects with None."""
    import pandas

    if kind == "numeric":
        numbers: Values = pandas.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        return numbers
    codes, values = pandas.factorize(column)
    names = np.empty(len(values) + 1, dtype=object)
    names[:-1] = [category(value.item() if hasattr(value, "item") else value) for value in values]
    names[-1] = None
    cells: Values = names[codes]
    return cells


def times_of(column: "pandas.Series[Any]", table: str, name: str) -> Values:
    """The rows' times in seconds since 1970; SettingsError where one is lacking, or older than the one before it."""
    times = seconds_of_column(column, table, name)
    if np.isnan(times).any():
        raise SettingsError([f"{table}: row {int(np.isnan(times).argmax()) + 1} has no time in column {name!r}"])
    if (np.diff(times) < 0).any():
        raise SettingsError(
            [f"{table}: row {int((np.diff(times) < 0).argmax()) + 2} is older than the one before it by {name!r}; sort the rows"]
        )
    return times


def seconds_of_column(column: "pandas.Series[Any]", table: str, name: str, *, lenient: bool = False) -> Values:
    """Seconds since 1970, NaN where there is no time. What is no time is lacking, too, where we are `lenient`; else a SettingsError."""
    import pandas

    if _is_numeric(column):
        numbers: Values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        return numbers
    try:
        parsed = pandas.to_datetime(column, utc=True, format="mixed", errors="coerce" if lenient else "raise")
    except (ValueError, TypeError) as error:
        raise SettingsError([f"{table}: column {name!r} holds no times: {error}"]) from error
    if lenient and not parsed.notna().any():
        raise SettingsError([f"{table}: column {name!r} holds no times: {column.iloc[0]!r}"])
    seconds: Values = (parsed - pandas.Timestamp(0, tz="UTC")).dt.total_seconds().to_numpy(dtype=np.float64)
    return seconds
