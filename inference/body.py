"""An event's body opened: gunzipped within a bound, its JSON document, and the bytes that follow it.

A v2 body with binary tensors is a JSON object with raw bytes behind it. Where the object ends is found here:
KServe's `Inference-Header-Content-Length` need not be there, and on a response event it is the request's.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Any

import orjson

from inference.errors import PayloadError
from inference.event import Event

MAX_JSON_HEAD = 1024 * 1024
"""How far the end of the JSON object in front of raw bytes is looked for."""

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a body may hold: bytes (before and after gunzip), rows, and cells over all its tensors."""

    max_body: int = 16 * 1024 * 1024
    max_rows: int = 100_000
    max_cells: int = 5_000_000


def opened(event: Event, limits: Bounds) -> tuple[dict[str, Any], bytes]:
    """The body's JSON object and the bytes behind it (b"" when there are none).

    PayloadError: unsupported_grpc, empty_body, body_too_large, bad_gzip, too_many_cells, bad_json.
    """
    if event.datacontenttype is not None and event.datacontenttype.startswith("application/grpc"):
        raise PayloadError("unsupported_grpc", f"{event.datacontenttype[:60]!r} bodies are not read; call the model over REST (v1 or v2)")
    body = event.data
    if len(body) > limits.max_body:
        raise PayloadError("body_too_large", f"a body of {len(body)} bytes; at most {limits.max_body} are read")
    if body[:2] == b"\x1f\x8b":
        body = _gunzipped(body, limits.max_body)
    if not body:
        raise PayloadError("empty_body", "the body is empty; an inference has a JSON object (a GET has none, and is no inference)")
    # Each cell takes a comma: a body of far too many is refused before a Python object is made of each.
    if len(body) > limits.max_cells and body.count(b",") > 2 * limits.max_cells:
        raise PayloadError("too_many_cells", f"a body of {len(body)} bytes with more than {2 * limits.max_cells} values")
    tail = b""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        end = _end_of_json(body)
        if end in (0, len(body)):
            raise _bad_json(body, error) from error
        try:
            document = orjson.loads(body[:end])
        except orjson.JSONDecodeError:
            raise _bad_json(body, error) from error
        tail = body[end:]
    if type(document) is not dict:
        raise PayloadError("bad_json", f"the body must be a JSON object, not a {type(document).__name__}")
    return document, tail


def document_only(event: Event, limits: Bounds) -> dict[str, Any]:
    """The body's JSON object, where nothing may follow it."""
    document, tail = opened(event, limits)
    no_tail(tail)
    return document


def no_tail(tail: bytes) -> None:
    """PayloadError(bad_json) when something stands behind a JSON object that no binary tensor accounts for."""
    if tail:
        raise PayloadError("bad_json", f"{len(tail)} bytes behind the JSON object, beginning {tail[:20]!r}; there should be none")


def _gunzipped(body: bytes, bound: int) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        plain = inflater.decompress(body, bound + 1)
    except zlib.error as error:
        raise PayloadError("bad_gzip", f"the body begins like gzip and cannot be decompressed: {error}") from error
    if len(plain) > bound:
        raise PayloadError("body_too_large", f"a gzip body of {len(body)} bytes holds more than {bound}; at most that many are read")
    if not inflater.eof:
        raise PayloadError("bad_gzip", f"the gzip body is cut short after {len(body)} bytes")
    if inflater.unused_data:
        raise PayloadError("bad_gzip", f"{len(inflater.unused_data)} bytes behind the gzip member; a body is one member")
    return plain


def _end_of_json(body: bytes) -> int:
    """The offset just behind the JSON object that the body begins with; 0 when it does not begin with a whole one."""
    depth = 0
    for token in _TOKEN.finditer(body, 0, MAX_JSON_HEAD):
        kind = token.group()
        if kind == b"{":
            depth += 1
        elif kind == b"}":
            depth -= 1
            if depth <= 0:
                return token.end() if depth == 0 else 0
        elif kind == b'"' or depth == 0:
            return 0
    return 0


def _bad_json(body: bytes, error: orjson.JSONDecodeError) -> PayloadError:
    # The error keeps the whole document; only its text goes on.
    hint = "; NaN and Infinity are not JSON, a missing value is null" if b"NaN" in body or b"Infinity" in body else ""
    return PayloadError("bad_json", f"the body is not JSON: {str(error)[:200]}{hint}")
