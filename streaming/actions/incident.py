"""The incident record: one folder per stretch of drift, with what was decided, on what evidence, and what came of it.

    <state>/incidents/<incident id>/incident.json    the newest decision, the run, its outcome, the report, the timeline
                                   /window.json      the evidence: the window that decided, by column
                                   /report.html      Evidently's report of that window (streaming/report.py)

Every file is written beside its final name and renamed into place. The folder is there for people and for the report;
nothing that decides reads it.
"""

import logging
import os
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from inference.errors import ActionError
from inference.event import now_text
from inference.versions import Schema
from streaming.actions.explained import feature_texts
from streaming.core.verdict import Decision

log = logging.getLogger(__name__)

INCIDENT = "incident.json"
WINDOW = "window.json"
REPORT = "report.html"
MAX_TIMELINE = 500

_FORMAT = 1
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# The loop and the outbox's threads write to the same records.
_writing = threading.Lock()


def incident_folder(state: Path, incident: str) -> Path:
    """Where the incident's record is; ActionError for an id that is no plain name."""
    if not _ID.fullmatch(incident):
        raise ActionError(f"{incident[:80]!r} is no incident id (letters, digits, '-', '_' and '.', 128 at most)", retry=False)
    return Path(state) / "incidents" / incident


def open_incident(state: Path, decision: Decision, reference: Path | None = None, *, schema: Schema | None = None, now: float) -> Path:
    """Write the incident's record, or add the decision to it, and give the folder. A decision that it knows changes nothing.

    `reference` is the version's reference sample and `schema` its columns, for the report. ActionError when it cannot be written.
    """
    folder = incident_folder(state, decision.incident)
    with _writing:
        record = _read(folder) or _new(decision, now)
        if any(line["id"] == decision.id for line in record["timeline"]):
            return folder
        record["decision"] = told = decision.as_dict()
        record["reference"] = str(reference) if reference is not None else record["reference"]
        record["schema"] = asdict(schema) if schema is not None else record["schema"]
        if decision.action == "retrain":
            record["run"] = {"id": decision.run_id, "state": "started"}
        # What a later decision finds no more: the moment at which the change began may have left its window by then.
        _append(record, decision.id, decision.action, "; ".join([decision.reason, *feature_texts(told)]), now)
        if decision.evidence:
            _write(folder, WINDOW, dict(decision.evidence))
        # Last, for the record tells that the rest is there.
        _write(folder, INCIDENT, record)
    return folder


def update_incident(
    state: Path, incident: str, *, id_: str, what: str, text: str = "", now: float, changes: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Add a line to the incident's timeline and set the fields in `changes` (a mapping is merged into the field's own).

    `id_` is the id of the event or entry that tells it: told twice, it changes nothing. Gives the record, or None when
    there is no such incident.
    """
    folder = incident_folder(state, incident)
    with _writing:
        record = _read(folder)
        if record is None or any(line["id"] == id_ for line in record["timeline"]):
            return record
        for name, value in (changes or {}).items():
            old = record.get(name)
            record[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, Mapping) else value
        _append(record, id_, what, text, now)
        _write(folder, INCIDENT, record)
    return record


def read_incident(state: Path, incident: str) -> dict[str, Any] | None:
    """The incident's record, None when there is none; ActionError when it is damaged."""
    return _read(incident_folder(state, incident))


def read_window(folder: Path) -> dict[str, list[Any]]:
    """The evidence by column; ActionError when there is none or it is damaged."""
    try:
        window = orjson.loads((folder / WINDOW).read_bytes())
    except (OSError, ValueError) as error:
        raise ActionError(f"{folder / WINDOW}: the window cannot be read: {error}", retry=False) from error
    if not isinstance(window, dict) or not all(isinstance(column, list) for column in window.values()):
        raise ActionError(f"{folder / WINDOW}: not a window; it must be one JSON object of columns", retry=False)
    return window


def list_incidents(state: Path) -> list[dict[str, Any]]:
    """All records, the newest first; a damaged one is logged and left out."""
    folder = Path(state) / "incidents"
    records = []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            record = _read(path)
        except ActionError as error:
            log.warning("%s", error)
        else:
            records.extend([record] if record is not None else [])
    return sorted(records, key=lambda record: (record["opened"], record["id"]), reverse=True)


def _new(decision: Decision, now: float) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "id": decision.incident,
        "model": decision.verdict.model,
        "version": decision.verdict.version,
        "opened": now_text(now),
        "decision": None,
        "reference": None,
        "schema": None,
        "run": None,
        "report": None,
        "timeline": [],
        "omitted": 0,
    }


def _append(record: dict[str, Any], id_: str, what: str, text: str, now: float) -> None:
    timeline: list[dict[str, Any]] = record["timeline"]
    timeline.append({"time": now_text(now), "what": what, "id": id_, "text": text})
    if len(timeline) > MAX_TIMELINE:
        # How it began and how it goes on matter; the middle of a long hold does not.
        del timeline[MAX_TIMELINE // 2]
        record["omitted"] += 1


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / INCIDENT
    try:
        record = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ActionError(f"{path}: the incident's record cannot be read: {error}", retry=False) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ActionError(f"{path}: not an incident's record of format {_FORMAT}", retry=False)
    return record


def _write(folder: Path, name: str, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """A NaN becomes null, as JSON has no other."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")
    except OSError as error:
        raise ActionError(f"{folder / name}: cannot be written: {error.strerror}; the state folder must be writable") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; OSError when that fails."""
    handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
