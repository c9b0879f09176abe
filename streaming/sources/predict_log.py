"""Prediction logs: one JSON object for each answered request, with its inputs and outputs, as `driftloop serve --predict-log` writes them.

Read leniently, since others write such logs too: rows, one row, an object of features, or a whole body of KServe's protocols v1 and v2;
model, version, id and time may be lacking. Each line becomes the events that KServe's logger would have posted, at the line's number as
offset; where the version changes, the promotion in front of them.
"""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import msgspec
import orjson
from msgspec import Raw

from inference.event import PROMOTED, REQUEST, RESPONSE, Event, deterministic_id, seconds_of
from inference.log import Record
from streaming.sources.files import BROKEN, File, files_of, lines_of, opened
from streaming.sources.seam import BATCH, Stretch, Unreadable

_INPUTS, _OUTPUTS = ("inputs", "instances", "input", "request"), ("outputs", "predictions", "output", "prediction", "response")
_WHOLE = re.compile(rb'"(?:instances|inputs|predictions|outputs)"\s*:')
_MOST_VERSIONS = 1000


class _Line(msgspec.Struct, gc=False):
    id: str | int | None = None
    model: str | None = None
    version: str | int | None = None
    time: str | float | None = None
    timestamp: str | float | None = None
    inputs: Raw = Raw()
    instances: Raw = Raw()
    input: Raw = Raw()
    request: Raw = Raw()
    outputs: Raw = Raw()
    predictions: Raw = Raw()
    output: Raw = Raw()
    prediction: Raw = Raw()
    response: Raw = Raw()


_read = msgspec.json.Decoder(_Line).decode


def with_rotated(file: File) -> list[File]:
    """The file and those that its rotation left beside it (`.1` is the newest of them), the oldest first."""
    if not file.fs.exists(f"{file.path}.1"):
        return [file]
    beside = files_of(file.fs.unstrip_protocol(f"{file.path}.*"))
    numbered = [(int(suffix), one) for one in beside if (suffix := PurePosixPath(one.path).suffix[1:]).isdigit()]
    return [*(one for _, one in sorted(numbered, key=lambda pair: -pair[0])), file]


class PredictLogSource:
    """The predictions of `model` where a line does not say "NAMESPACE/NAME"; `annotation` is what carries the version."""

    def __init__(self, files: list[File], name: str, stretch: Stretch, *, model: str, annotation: str) -> None:
        self.name = name
        self.unreadable = Unreadable()
        self.notes: list[str] = []
        self._files = files
        self._stretch = stretch
        self._model = model
        self._annotation = annotation
        self._versions: dict[str, str] = {}
        self._extensions: dict[tuple[str, str], dict[str, str]] = {}
        self._line = 0
        self._newest = 0.0
        self._timed = False

    def __iter__(self) -> Iterator[list[Record]]:
        for file in self._files:
            first = self._line
            try:
                with opened(file) as stream:
                    for lines in lines_of(stream, BATCH // 2):
                        records: list[Record] = []
                        for line in lines:
                            self._add(records, line, file, first)
                        if kept := self._stretch.kept(records):
                            yield kept
            except BROKEN as error:
                self.unreadable.add(f"{file.name}:{self._line - first + 1}", f"the file cannot be read further: {error}")
        if self._line and not self._timed:
            self.notes.append("no line has a time: they are taken to be one second apart")

    def _add(self, records: list[Record], line: bytes, file: File, first: int) -> None:
        self._line += 1
        place = self._line - 1
        if not line or line == b"\r":
            return
        where = f"{file.name}:{self._line - first}"
        try:
            records += self._records(_read(line), place, where)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.unreadable.add(where, "longer than a record may be" if line == b"\n" else str(error))

    def _records(self, read: _Line, place: int, where: str) -> list[Record]:
        asked, answered = _chosen(read, _INPUTS), _chosen(read, _OUTPUTS)
        request, response = _bodies(asked, answered)
        time, told = self._time(read, place)
        model = read.model if read.model and "/" in read.model else self._model
        version = str(read.version) if read.version is not None else ""
        extensions = self._extensions_of(model, version)
        id_ = str(read.id) if read.id else where
        halves = [(REQUEST, request), (RESPONSE, response)]
        events = [Event(id_, self.name, type_, told, "application/json", extensions, body) for type_, body in halves]
        before = self._versions.get(model)
        if version and version != before:
            self._versions[model] = version
            if before is not None:
                events.insert(0, _promotion(model, version, before, extensions, where))
        return [Record(0, place, time, event) for event in events]

    def _time(self, read: _Line, place: int) -> tuple[float, str]:
        """When the line was written, and what it says of it; without a time, or one that goes back, that of the line before."""
        told = read.time if read.time is not None else read.timestamp
        if told is None:
            self._newest = self._newest if self._timed else float(place)
            return self._newest, ""
        seconds = seconds_of(told) if isinstance(told, str) else float(told)
        if seconds != seconds:
            raise ValueError(f"{str(told)[:60]!r} is no RFC 3339 time with a zone, and no number of seconds since 1970")
        self._timed = True
        self._newest = max(self._newest, seconds)
        return self._newest, told if isinstance(told, str) else ""

    def _extensions_of(self, model: str, version: str) -> dict[str, str]:
        known = self._extensions.get((model, version))
        if known is None:
            if len(self._extensions) >= _MOST_VERSIONS:
                self._extensions.clear()
            namespace, _, name = model.partition("/")
            known = {"namespace": namespace, "inferenceservicename": name}
            if version:
                known["annotations"] = orjson.dumps({self._annotation: version}).decode()
            self._extensions[model, version] = known
        return known


def _promotion(model: str, version: str, before: str, extensions: dict[str, str], where: str) -> Event:
    body = orjson.dumps({"model": model, "version": version, "previous": before})
    id_ = deterministic_id("predict-log", model, version, where)
    return Event(id_, "driftloop/predict-log", PROMOTED, "", "application/json", extensions, body)


def _chosen(read: _Line, names: tuple[str, ...]) -> bytes:
    for name in names:
        if value := bytes(getattr(read, name)):
            return value
    raise ValueError(f"a line needs what was asked and what was answered; there is no {' or '.join(names[:2])}")


def _bodies(asked: bytes, answered: bytes) -> tuple[bytes, bytes]:
    """As bodies of KServe's protocols."""
    if asked[:1] == b"{":
        request = asked if _WHOLE.search(asked) else b'{"instances":[' + asked + b"]}"
    elif asked[:1] == b"[":
        inner = asked[1:].lstrip()[:1]
        if inner == b"{" and b'"datatype"' in asked:
            request = b'{"inputs":' + asked + b"}"
        elif inner in (b"[", b"{", b"]") or _several(answered):
            request = b'{"instances":' + asked + b"}"
        else:
            request = b'{"instances":[' + asked + b"]}"
    else:
        raise ValueError("inputs are rows, a row, or an object of features")
    if answered[:1] == b"{":
        return request, answered
    if answered[:1] != b"[":
        return request, b'{"predictions":[' + answered + b"]}"
    tensors = answered[1:].lstrip()[:1] == b"{" and b'"datatype"' in answered
    return request, (b'{"outputs":' if tensors else b'{"predictions":') + answered + b"}"


def _several(answered: bytes) -> bool:
    """Whether there is more than one answer: then a flat list of inputs is one feature of as many rows."""
    if answered[:1] != b"[":
        return False
    answers: list[Any] = orjson.loads(answered)
    return len(answers) > 1
