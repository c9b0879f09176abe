"""Join predictions with the labels that came for them, before or after, in log order and within bounds."""

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from inference.payload import Label

CAPACITY = 1_000_000
"""Rows of predictions, and labels, that are kept while the other half may still come; the oldest are given up."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The rows of one request, in the schema's order, and where on the log the request/response pair was complete."""

    id: str
    source: str
    rows: Sequence[Sequence[Any]]
    offset: int
    timestamp: float


@dataclass(frozen=True, slots=True)
class Labelled:
    """One row with its label."""

    cells: Sequence[Any]
    label: Any
    offset: int
    timestamp: float


class Join:
    """Predictions by (source, id) and labels by (id, source or "").

    A label without a source belongs to the one prediction with its id. A later label for the same prediction replaces the
    earlier one. Two predictions of the same identity (a client that reuses its Ce-Id) cannot be told apart by a label: both
    are left out and counted as `ambiguous`, for a wrong label harms more than a missing one.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._predictions: OrderedDict[tuple[str, str], Prediction | None] = OrderedDict()
        self._rows = 0
        self._labels: OrderedDict[tuple[str, str], Label] = OrderedDict()
        self.given_up = 0

    def add_prediction(self, prediction: Prediction) -> None:
        key = (prediction.source, prediction.id)
        if key in self._predictions:
            known = self._predictions[key]
            self._rows -= len(known.rows) if known is not None else 0
            self._predictions[key] = None
            return
        self._predictions[key] = prediction
        self._rows += len(prediction.rows)
        while self._rows > self._capacity or len(self._predictions) > self._capacity:
            _, oldest = self._predictions.popitem(last=False)
            self._rows -= len(oldest.rows) if oldest is not None else 0
            self.given_up += 1

    def add_label(self, label: Label) -> None:
        key = (label.prediction_id, label.source)
        self._labels.pop(key, None)
        self._labels[key] = label
        if len(self._labels) > self._capacity:
            self._labels.popitem(last=False)
            self.given_up += 1

    def join(self) -> tuple[list[Labelled], Counter[str]]:
        """Every labelled row in the order of the predictions on the log, and what became of the rest."""
        counts: Counter[str] = Counter(predictions=len(self._predictions), labels=len(self._labels))
        by_id = Counter(id_ for _, id_ in self._predictions)
        used: set[tuple[str, str]] = set()
        rows = [row for (source, id_), made in self._predictions.items() for row in self._one(id_, source, made, by_id, used, counts)]
        counts["labels_for_unknown_predictions"] = len(self._labels.keys() - used)
        counts["given_up"] = self.given_up
        return rows, +counts

    def _one(
        self, id_: str, source: str, made: Prediction | None, by_id: Counter[str], used: set[tuple[str, str]], counts: Counter[str]
    ) -> Iterator[Labelled]:
        key = (id_, source)
        if key not in self._labels:
            key = (id_, "")
        label = self._labels.get(key)
        if label is None:
            counts["unlabelled"] += 1
            return
        used.add(key)
        if made is None or (key[1] == "" and by_id[id_] > 1):
            counts["ambiguous"] += 1
        elif len(label.labels) != len(made.rows):
            counts["label_count_differs"] += 1
        else:
            for cells, value in zip(made.rows, label.labels, strict=True):
                if value is None:
                    counts["rows_without_label"] += 1
                else:
                    yield Labelled(cells, value, made.offset, made.timestamp)
