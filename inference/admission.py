"""What the gateway takes for an event: a CloudEvent of a known type about a model that can exist, and no noise."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson

from inference.errors import EventError
from inference.event import LABEL, PROMOTED, REQUEST, RESPONSE, RETRAINING_FINISHED, Event, from_http

ACCEPTED_TYPES = (REQUEST, RESPONSE, LABEL, PROMOTED, RETRAINING_FINISHED)
NAMES = {
    "namespace": re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"),
    "inferenceservicename": re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?"),
}


def admit(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Event:
    """The event of an HTTP message, if we accept it; EventError says what is wrong with it."""
    event = from_http(headers, body)
    type_ = event.type
    if type_ not in ACCEPTED_TYPES:
        raise EventError("unknown_type", f"type {type_[:100]!r}; accepted: {', '.join(ACCEPTED_TYPES)}")
    _check_model(event.extensions.get("namespace", ""), event.extensions.get("inferenceservicename", ""))
    if type_ != REQUEST and type_ != RESPONSE and not isinstance(_json(event.data), dict):
        raise EventError("bad_json", f"the body of {type_} must be one JSON object")
    return event


@lru_cache(maxsize=10_000)
def _check_model(namespace: str, name: str) -> None:
    for attribute, value in (("namespace", namespace), ("inferenceservicename", name)):
        if not value:
            raise EventError(
                f"missing_{attribute}", f"the attribute {attribute!r} is missing or empty; it names the model together with the other"
            )
        if not NAMES[attribute].fullmatch(value):
            raise EventError(f"bad_{attribute}", f"{attribute} {value[:100]!r} is no Kubernetes name (lower-case letters, digits and '-')")


def noise(event: Event) -> str:
    """Why an event of KServe's logger is no prediction, or "": it logs GETs (model lists, metrics) like predictions.

    Their request half has no body; their response half has no content type (it carries the request's) and another body.
    """
    if event.type == REQUEST and not event.data:
        return "empty_request"
    if event.type == RESPONSE and not event.datacontenttype and not _answers_inference(event.data):
        return "not_inference"
    return ""


def _answers_inference(body: bytes) -> bool:
    document = _json(body)
    if isinstance(document, dict):
        return isinstance(document.get("predictions"), list) or (isinstance(document.get("outputs"), list) and "model_name" in document)
    # No JSON as a whole, but perhaps gzip, or v2's JSON header with raw tensors after it: the reader decides.
    return body.startswith(b"\x1f\x8b") or (body.startswith(b"{") and b'"outputs"' in body and b'"model_name"' in body)


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
