"""Split the rows into training and hold-out, fit the trainer's estimator, and take the new version's reference sample."""

import importlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inference.errors import DriftloopError, PipelineError, TooLittleData
from inference.versions import PREDICTION, Schema
from pipelines.tables import Table, answers
from pipelines.trainers import SEED

if TYPE_CHECKING:
    import pandas


def split(table: Table, holdout: float) -> tuple[Table, Table]:
    """The training rows and the hold-out: the newest share in time order, or a seeded, stratified draw from an unordered table."""
    if not 0.0 < holdout < 1.0:
        raise PipelineError(f"holdout is {holdout}; it must lie between 0 and 1, for example 0.3")
    rows = len(table.frame)
    held = max(1, round(rows * holdout))
    if rows - held < 2:
        raise TooLittleData(f"{rows} labelled rows leave {rows - held} to train on once {held} are held out; at least 2 are needed")
    frame = table.frame if table.ordered else _shuffled(table, rows, held)
    parts = frame.iloc[: rows - held], frame.iloc[rows - held :]
    return replace(table, frame=parts[0].reset_index(drop=True)), replace(table, frame=parts[1].reset_index(drop=True))


def _shuffled(table: Table, rows: int, held: int) -> "pandas.DataFrame":
    import pandas
    from sklearn.model_selection import train_test_split

    counts = Counter(table.labels)
    stratifies = table.schema.prediction == "categorical" and min(counts.values()) >= 2 and len(counts) <= min(held, rows - held)
    kept, out = train_test_split(
        table.frame, test_size=held, random_state=SEED, shuffle=True, stratify=table.labels if stratifies else None
    )
    shuffled: pandas.DataFrame = pandas.concat([kept, out])
    return shuffled


def make_estimator(trainer: str, schema: Schema) -> Any:
    """The unfitted estimator of the trainer named "module:function"; PipelineError says what is wrong with the name or the result."""
    module_name, separator, function_name = trainer.partition(":")
    if not separator or not module_name or not function_name:
        raise PipelineError(f"trainer {trainer!r} must read module:function, for example pipelines.trainers:classifier")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise PipelineError(f"trainer {trainer!r} cannot be imported: {error}") from error
    try:
        estimator = function(schema)
    except DriftloopError:
        raise
    except Exception as error:
        raise PipelineError(f"trainer {trainer!r} failed: {type(error).__name__}: {error}") from error
    if not callable(getattr(estimator, "fit", None)) or not callable(getattr(estimator, "predict", None)):
        raise PipelineError(f"trainer {trainer!r} gave a {type(estimator).__name__}; it must give an estimator with fit() and predict()")
    return estimator


def fit(trainer: str, table: Table) -> tuple[Any, Schema]:
    """The estimator fitted on `table`, and the schema with the kind of prediction that this estimator makes."""
    estimator = make_estimator(trainer, table.schema)
    try:
        estimator.fit(table.features, table.labels)
    except Exception as error:
        raise PipelineError(
            f"trainer {trainer!r} could not fit {len(table.frame)} rows of {', '.join(table.schema.names)}: {type(error).__name__}: {error}"
        ) from error
    kinds = {"classifier": "categorical", "regressor": "numeric"}
    kind: Any = kinds.get(_kind(estimator), table.schema.prediction)
    return estimator, replace(table.schema, prediction=kind)


def _kind(estimator: Any) -> str:
    from sklearn.base import is_classifier, is_regressor

    return "classifier" if is_classifier(estimator) else "regressor" if is_regressor(estimator) else ""


def predictions(estimator: Any, features: "pandas.DataFrame") -> list[Any]:
    """One plain Python value per row."""
    given = estimator.predict(features)
    return list(given.tolist() if hasattr(given, "tolist") else given)


def reference(estimator: Any, table: Table, rows: int) -> "pandas.DataFrame":
    """What the new version's predictions will be compared with: the features of recent rows and its own answers on them.

    The newest `rows` of time-ordered data, held-out ones included: the monitor compares distributions, not errors, and the
    newest rows are the ones that look like what comes next. A seeded draw when the table has no order.
    """
    if rows < 1:
        raise PipelineError(f"reference_rows is {rows}; at least 1 is needed")
    frame = table.features
    if len(frame) > rows:
        frame = frame.tail(rows) if table.ordered else frame.sample(rows, random_state=SEED)
    frame = frame.reset_index(drop=True)
    return frame.assign(**{PREDICTION: answers(predictions(estimator, frame), table.schema.prediction)})
