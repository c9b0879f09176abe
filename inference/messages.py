"""Labels, promotions and ends of retraining runs: the events of ours that travel on the log, read and checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from inference.body import Bounds, document_only
from inference.errors import PayloadError
from inference.event import Event

MAX_LABELS = 100_000
OUTCOMES = ("promoted", "kept", "failed")

_SCALARS = frozenset({float, int, str, bool, type(None)})
_LIMITS = Bounds()


@dataclass(frozen=True, slots=True)
class Label:
    """The truth about one prediction: a label per row, None where it is not known. `source` is the prediction's, or "" for any."""

    prediction_id: str
    source: str
    labels: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Promotion:
    """Version `version` of `model` went live in place of `previous` ("" when it is the first)."""

    model: str
    version: str
    previous: str
    run_id: str
    metrics: Mapping[str, float]


def decode_label(event: Event) -> Label:
    """PayloadError(bad_label) says which part is wrong."""
    document = document_only(event, _LIMITS)
    if ("labels" in document) == ("label" in document):
        raise PayloadError("bad_label", 'a label event has either "labels" (a list, one per row) or "label" (the label of one row)')
    labels = document["labels"] if "labels" in document else [document["label"]]
    if type(labels) is not list or not labels:
        raise PayloadError("bad_label", f'"labels" must be a list with one label per row, not {short(labels)}')
    if len(labels) > MAX_LABELS:
        raise PayloadError("bad_label", f"{len(labels)} labels; at most {MAX_LABELS} are read")
    if not _SCALARS.issuperset(map(type, labels)):
        wrong = next(number for number, label in enumerate(labels) if type(label) not in _SCALARS)
        raise PayloadError("bad_label", f"label {wrong} is {short(labels[wrong])}; a label is a text, a number, a boolean or null")
    prediction_id = _text(document, "prediction_id", "bad_label", required=True)
    return Label(prediction_id, _text(document, "prediction_source", "bad_label"), tuple(labels))


def decode_promotion(event: Event) -> Promotion:
    """PayloadError(bad_promotion) says which part is wrong."""
    document = document_only(event, _LIMITS)
    reason = "bad_promotion"
    metrics = document.get("metrics", {})
    if type(metrics) is not dict or not all(_is_number(value) for value in metrics.values()):
        raise PayloadError(reason, f'"metrics" must be an object of numbers by name, not {short(metrics)}')
    return Promotion(
        model=_model(document, event, reason),
        version=_text(document, "version", reason, required=True),
        previous=_text(document, "previous", reason),
        run_id=_text(document, "run_id", reason),
        metrics={name: float(value) for name, value in metrics.items()},
    )


def decode_finished(event: Event) -> Mapping[str, Any]:
    """Every field of a retraining.finished event, with "", None or 0 for those left out; `outcome` is one of OUTCOMES.

    PayloadError(bad_finished) says which part is wrong.
    """
    document = document_only(event, _LIMITS)
    reason = "bad_finished"
    outcome = document.get("outcome")
    if outcome not in OUTCOMES:
        raise PayloadError(reason, f'"outcome" is {short(outcome)}; it should be one of {", ".join(OUTCOMES)}')
    checked: dict[str, Any] = {
        "model": _model(document, event, reason),
        "run_id": _text(document, "run_id", reason, required=True),
        "outcome": outcome,
        "version": _text(document, "version", reason, required=outcome == "promoted"),
        "reason": _text(document, "reason", reason, longest=10_000),
        "metric": _text(document, "metric", reason),
        "champion": document.get("champion"),
        "challenger": document.get("challenger"),
        "margin": document.get("margin", 0.0),
        "rows": document.get("rows", 0),
    }
    for name in ("champion", "challenger"):
        if checked[name] is not None and not _is_number(checked[name]):
            raise PayloadError(reason, f'"{name}" must be a number or null, not {short(checked[name])}')
    if not _is_number(checked["margin"]):
        raise PayloadError(reason, f'"margin" must be a number, not {short(checked["margin"])}')
    if type(checked["rows"]) is not int or checked["rows"] < 0:
        raise PayloadError(reason, f'"rows" must be a whole number from 0 up, not {short(checked["rows"])}')
    return {**document, **checked}


def _text(document: Mapping[str, Any], name: str, reason: str, *, required: bool = False, longest: int = 1024) -> str:
    value = document.get(name)
    if value is None and not required:
        return ""
    if type(value) is not str or (required and not value):
        raise PayloadError(reason, f'"{name}" must be a text{" that is not empty" if required else ""}, not {short(value)}')
    if len(value) > longest:
        raise PayloadError(reason, f'"{name}" has {len(value)} characters; at most {longest} are read')
    return value


def _model(document: Mapping[str, Any], event: Event, reason: str) -> str:
    model = _text(document, "model", reason, required=True)
    if model != event.model:
        raise PayloadError(reason, f'"model" is {short(model)} and the event is about {short(event.model)}; they should be the same')
    return model


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
