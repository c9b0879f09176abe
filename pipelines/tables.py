"""What one step hands to the next: a folder with a table (parquet) and a description (JSON)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import PipelineError
from inference.versions import Feature, Kind, Schema

if TYPE_CHECKING:
    import pandas

DESCRIPTION = "description.json"
DATA = "data.parquet"


@dataclass(frozen=True, slots=True)
class Table:
    """Labelled rows: the features of `schema` in its order, then the target. `span` says where they come from (free JSON).

    Numeric columns are float64 with NaN for missing; categorical ones hold `inference.payload.category`'s texts, None for
    missing; a target of classes keeps its type, for the model will answer with it. `ordered` rows are in time order.
    """

    frame: "pandas.DataFrame"
    schema: Schema
    span: Mapping[str, Any]
    ordered: bool

    @property
    def features(self) -> "pandas.DataFrame":
        return self.frame[list(self.schema.names)]

    @property
    def labels(self) -> list[Any]:
        return list(self.frame[self.schema.target].tolist())


def write_table(table: Table, folder: Path) -> None:
    """Write the table as `data.parquet` and `description.json` into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_frame(table.frame, folder / DATA)
    write_json(folder / DESCRIPTION, {"schema": asdict(table.schema), "ordered": table.ordered, "span": dict(table.span)})


def read_table(folder: Path) -> Table:
    """What `write_table` wrote; PipelineError when it is not there or damaged."""
    description = read_json(folder / DESCRIPTION)
    schema = schema_of(description["schema"])
    return Table(read_frame(folder / DATA, schema), schema, description["span"], description["ordered"])


def write_frame(frame: "pandas.DataFrame", path: Path) -> None:
    frame.to_parquet(path, index=False)


def read_frame(path: Path, schema: Schema) -> "pandas.DataFrame":
    """The features (and the target, if the file has it) with the types that `Table` promises."""
    import pyarrow.parquet

    try:
        columns = pyarrow.parquet.read_table(path).to_pydict()
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read as parquet: {error}") from error
    return make_frame(columns, schema)


def make_frame(columns: Mapping[str, Sequence[Any]], schema: Schema) -> "pandas.DataFrame":
    """A frame with the schema's columns out of plain cells; the target is taken along when it is there."""
    import pandas

    missing = [name for name in schema.names if name not in columns]
    if missing:
        raise PipelineError(f"the columns {missing} are missing; there are {list(columns)}")
    made: dict[str, Any] = {f.name: numbers(columns[f.name]) if f.kind == "numeric" else texts(columns[f.name]) for f in schema.features}
    if schema.target in columns:
        made[schema.target] = answers(columns[schema.target], schema.prediction)
    return pandas.DataFrame(made)


def numbers(cells: Sequence[Any]) -> "pandas.Series[Any]":
    """A numeric column: float64, NaN for missing."""
    import pandas

    return pandas.Series([math.nan if cell is None else float(cell) for cell in cells], dtype="float64")


def texts(cells: Sequence[Any]) -> "pandas.Series[Any]":
    """A categorical feature: the names that the monitor and the predictor give the same categories, None for missing."""
    import pandas

    from inference.payload import category

    return pandas.Series([category(plain_value(cell)) for cell in cells], dtype="object")


def answers(cells: Sequence[Any], kind: Kind) -> "pandas.Series[Any]":
    """Labels or predictions: numbers, or classes of one type (as text when they differ)."""
    import pandas

    if kind == "numeric":
        return numbers(cells)
    plain = [None if is_missing(cell) else plain_value(cell) for cell in cells]
    differ = len({type(cell) for cell in plain if cell is not None}) > 1
    return texts(plain) if differ else pandas.Series(plain, dtype="object")


def is_missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def plain_value(cell: Any) -> Any:
    """A category as plain Python: numpy scalars unpacked, a whole float as an int (a missing value turns a CSV's ints into floats)."""
    value = cell.item() if hasattr(cell, "item") else cell
    return int(value) if isinstance(value, float) and value.is_integer() else value


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise PipelineError(f"{path}: holds a {type(document).__name__}; it must be one JSON object")
    return document


def schema_of(document: Mapping[str, Any]) -> Schema:
    """The schema out of its JSON form."""
    try:
        features = tuple(Feature(feature["name"], feature["kind"]) for feature in document["features"])
        return Schema(features, document["prediction"], document["target"])
    except (KeyError, TypeError) as error:
        raise PipelineError(f"not a schema: {error!r} in {json.dumps(document)[:200]}") from error
