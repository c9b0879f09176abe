"""Which source a URL means: told by its scheme, its name or what it holds, or by a format that is named."""

import re
from pathlib import Path

from inference.errors import SettingsError
from inference.log import open_log
from inference.log.address import is_remote
from inference.log.connection import Connection
from streaming.sources.capture import CaptureSource
from streaming.sources.files import BROKEN, File, file_system, files_of, opened, shown
from streaming.sources.kserve_blobs import SUFFIXES as BLOBS
from streaming.sources.kserve_blobs import KServeBlobSource
from streaming.sources.logs import LogSource
from streaming.sources.predict_log import PredictLogSource, with_rotated
from streaming.sources.recording import SUFFIXES as RECORDINGS
from streaming.sources.recording import RecordingSource
from streaming.sources.seam import EventSource, Stretch

FORMATS = ("log", "recording", "predict-log", "table", "capture", "kserve")
TABLES = (".parquet", ".pq", ".csv", ".csv.gz", ".csv.zst")
_BLOB = re.compile(r"-(?:request|response)\.(?:json|csv|parquet)$")
_PLACEHOLDER = "give its --format: " + ", ".join(FORMATS)


def format_of(url: str) -> str:
    """One of FORMATS. SettingsError: it can't be told."""
    if is_remote(url) or url.startswith("embedded:"):
        return "log"
    fs, path = file_system(url)
    if path.endswith((".db", ".sqlite")):
        return "log"
    if fs.isdir(path) and _within(fs, path, ".avro"):
        return "capture"
    file = files_of(url)[0]
    if file.path.endswith(".avro"):
        return "capture"
    if _BLOB.search(file.path):
        return "kserve"
    if file.path.endswith(TABLES):
        return "table"
    return _by_content(file, url)


def _within(fs: object, path: str, suffix: str) -> bool:
    """Whether the first file below is one with this suffix, found without a list of all files."""
    for _, _, files in fs.walk(path):  # type: ignore[attr-defined]
        if files:
            return any(str(name).endswith(suffix) for name in files)
    return False


def _by_content(file: File, url: str) -> str:
    try:
        with opened(file) as stream:
            head = stream.read(65_536)
    except BROKEN as error:
        raise SettingsError([f"{shown(url)}: cannot be read: {error}"]) from error
    if head.startswith(b"SQLite format 3"):
        return "log"
    first = head.lstrip()
    if first.startswith(b"{") and b'"specversion"' in first.partition(b"\n")[0]:
        return "recording"
    if first.startswith((b"{", b"[{")) and re.search(rb'"(?:ReqType|reqType)"', first):
        return "kserve"
    if first.startswith(b"{"):
        return "predict-log"
    raise SettingsError([f"{shown(url)}: what this is cannot be told by its name or content; {_PLACEHOLDER}"])


def open_events(url: str, format_: str, stretch: Stretch, *, log: Connection | None, model: str, annotation: str) -> EventSource:
    """A source of events. `log` is the configured log's connection, whose credentials serve where the URL is on the same servers;
    `model` and `annotation` are for prediction logs."""
    if format_ == "table":
        raise SettingsError([f"{shown(url)}: a table holds rows, not events"])
    if format_ == "log":
        return LogSource(open_log(connection_for(url, log), must_exist=True), shown(url), stretch)
    if format_ == "capture":
        return CaptureSource(url, stretch)
    if format_ == "kserve":
        return KServeBlobSource(files_of(url, BLOBS), shown(url), stretch)
    files = files_of(url, RECORDINGS if format_ == "recording" else ())
    if format_ == "recording":
        return RecordingSource(files, shown(url), stretch)
    files = with_rotated(files[0]) if len(files) == 1 else files
    return PredictLogSource(files, shown(url), stretch, model=model, annotation=annotation)


def connection_for(url: str, log: Connection | None) -> Connection | str:
    """The way to a log that is named by its address."""
    if not is_remote(url):
        return url if url.startswith("embedded:") or "://" not in url else f"embedded:{Path(url.partition('://')[2])}"
    if log is None:
        return url
    same = url.split("/")[:3] == log.url.split("/")[:3]
    return log.model_copy(update={"url": url}) if same else url
