"""What KServe's own logger stores in a bucket (`logger.storage`): one file for each request and response, or for a batch of them.

    .../NAMESPACE/INFERENCESERVICE/COMPONENT[/...]/ID-request.json, ID-response.json; or .csv, .parquet

The columns' names differ between KServe's versions (`ReqType`, `reqType`, `req_type`); the body is raw in a Parquet file with raw bytes,
base64 elsewhere. Nothing in a file says when it was: the store's time of the file does, and the order is that of these times. A file
is read as a whole, as KServe wrote it from memory; a list of all of them is kept (some 300 bytes for each).
"""

import base64
import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from inference.errors import EventError
from inference.event import Event, from_http
from inference.log import Record
from streaming.sources.files import BROKEN, File, opened
from streaming.sources.seam import BATCH, Stretch, Unreadable

SUFFIXES = (".json", ".csv", ".parquet")
_MAX_FILE = 256 * 1024 * 1024
_ATTRIBUTES = {"id": "id", "source": "sourceuri", "type": "reqtype", "inferenceservicename": "inferenceservice"}
_EXTENSIONS = ("namespace", "component", "endpoint", "metadata", "annotations")


class KServeBlobSource:
    """The events in the files, by the files' times; offsets count them."""

    def __init__(self, files: list[File], name: str, stretch: Stretch) -> None:
        self.name = name
        self.unreadable = Unreadable()
        self.notes = ["KServe's files say nothing of time: the times are those of the files in the store"]
        self._files = sorted(files, key=lambda file: (file.modified, file.path))
        self._stretch = stretch
        self._offset = 0

    def __iter__(self) -> Iterator[list[Record]]:
        batch: list[Record] = []
        for file in self._files:
            try:
                entries = _entries(file)
            except (*BROKEN, ValueError, KeyError, csv.Error) as error:
                self.unreadable.add(file.name, f"the file cannot be read: {error}")
                continue
            for number, entry in enumerate(entries, 1):
                record = self._record(entry, f"{file.name}:{number}", file.modified)
                batch += self._stretch.kept([record]) if record else []
            if len(batch) >= BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def _record(self, entry: Mapping[str, Any], place: str, time: float) -> Record | None:
        try:
            event = _event({name.lower().replace("_", ""): value for name, value in entry.items() if value is not None})
        except (EventError, ValueError, TypeError, AttributeError) as error:
            self.unreadable.add(place, str(error))
            return None
        self._offset += 1
        return Record(0, self._offset - 1, time, event)


def _event(entry: Mapping[str, Any]) -> Event:
    """From what KServe's logger keeps of a request, names in lower case without underscores."""
    attributes = {"specversion": "1.0"} | {name: _text(entry.get(column, "")) for name, column in _ATTRIBUTES.items()}
    attributes |= {name: text for name in _EXTENSIONS if (text := _text(entry.get(name, "")))}
    headers = [(f"ce-{name}".encode(), text.encode()) for name, text in attributes.items()]
    if content_type := entry.get("contenttype"):
        headers.append((b"content-type", content_type.encode()))
    body = entry.get("bytes", b"")
    return from_http(headers, body if isinstance(body, bytes) else base64.b64decode(body, validate=True))


def _text(value: Any) -> str:
    """A URL as Go writes it in JSON is an object of its parts; a map in Parquet is a list of pairs."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return orjson.dumps(dict(value)).decode() if value else ""
    if isinstance(value, dict) and {"Scheme", "Host", "Path"} <= value.keys():
        scheme, host = value["Scheme"], value["Host"]
        return f"{f'{scheme}:' if scheme else ''}{f'//{host}' if host else ''}{value['Path']}{value.get('Opaque', '')}"
    if isinstance(value, dict):
        return orjson.dumps(value).decode() if value else ""
    raise ValueError(f"{str(value)[:60]!r} is no text")


def _entries(file: File) -> list[dict[str, Any]]:
    """What a file holds. ValueError, KeyError: no such thing."""
    with opened(file) as stream:
        content = stream.read(_MAX_FILE + 1)
    if len(content) > _MAX_FILE:
        raise ValueError(f"it has more than {_MAX_FILE} bytes")
    if file.path.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        found: list[dict[str, Any]] = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
        return found
    if file.path.endswith(".csv"):
        return list(csv.DictReader(io.StringIO(content.decode())))
    document = orjson.loads(content)
    entries = document if isinstance(document, list) else [document]
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it is neither an object nor a list of objects")
    return entries
