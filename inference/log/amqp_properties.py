"""Application properties of an AMQP message as Kafka's headers: from a hub directly, and from the files of its Capture."""

import re
from collections.abc import Mapping
from typing import Any

_FOREIGN = re.compile(r"cloudEvents[:_]")
_names: dict[Any, str] = {}


def headers_of(properties: Mapping[Any, Any], content_type: Any) -> list[tuple[str, bytes | None]]:
    """The headers; AMQP's own field `content_type` (None: not there) is one of them, unless the properties have it."""
    headers: list[tuple[str, bytes | None]] = [(_name(name), _text(value)) for name, value in properties.items()]
    if content_type is not None and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("content-type", _text(content_type)))
    return headers


def _name(raw: bytes | str) -> str:
    name = _names.get(raw)
    if name is None:
        text = raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
        name = _FOREIGN.sub("ce_", text, count=1) if _FOREIGN.match(text) else text
        if len(_names) < 1000:
            _names[raw] = name
    return name


def _text(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return str(value).lower().encode() if isinstance(value, bool) else str(value).encode()
