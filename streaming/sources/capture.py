"""Event Hubs Capture: Avro files in folders by partition and time, as the service leaves them in Blob storage or a data lake.

    {Namespace}/{EventHub}/{PartitionId}/{Year}/{Month}/{Day}/{Hour}/{Minute}/{Second}.avro

A record's offset is its sequence number and its time that of its arrival, which Capture keeps to the second. Of a stretch of time only
the hours that may hold it are listed and read.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, cast

from inference.errors import SettingsError
from inference.log import Record
from inference.log.amqp_properties import headers_of
from inference.log.kafka_records import UNREADABLE, record_of
from streaming.sources.files import BROKEN, File, file_of, file_system, files_of, opened, shown
from streaming.sources.seam import BATCH, Stretch, Unreadable

_PATH = re.compile(r"(?:^|/)(\d+)/(\d{4})/(\d\d?)/(\d\d?)/(\d\d?)/(\d\d?)/(\d\d?)\.avro$")
_SLACK = timedelta(hours=1)
"""A file holds at most 15 minutes; what the hub was late with may stand in a later one."""
_TIMES = ("%m/%d/%Y %I:%M:%S %p", "%Y-%m-%dT%H:%M:%S", "%m/%d/%Y %H:%M:%S")
_MAX_KNOWN = 10_000
_known: dict[str, float] = {}


class CaptureSource:
    """The events of a capture, in the order of its files' times; `url` is the namespace's folder, the hub's, a partition's or a file."""

    def __init__(self, url: str, stretch: Stretch) -> None:
        self.name = shown(url)
        self.unreadable = Unreadable()
        self.notes: list[str] = []
        self._url = url
        self._stretch = stretch
        self._reached: dict[int, int] = {}

    def __iter__(self) -> Iterator[list[Record]]:
        found = captured(self._url, self._stretch)
        hubs = {hub for _, _, hub, _ in found}
        if len(hubs) > 1:
            raise SettingsError([f"{self.name}: holds the captures of {len(hubs)} hubs ({', '.join(sorted(hubs)[:3])}); name one of them"])
        for _, number, _, file in found:
            yield from self._records(number, file)

    def _records(self, number: int, file: File) -> Iterator[list[Record]]:
        count = 0
        batch: list[Record] = []
        try:
            with opened(file) as stream:
                for message in _messages(stream):
                    count += 1
                    if (record := self._record(number, message, f"{file.name}:{count}")) is not None:
                        batch.append(record)
                    if len(batch) >= BATCH:
                        yield batch
                        batch = []
        except (*BROKEN, *_UNFIT) as error:
            self.unreadable.add(f"{file.name}:{count + 1}", f"the file cannot be read further: {error}")
        if batch:
            yield batch

    def _record(self, number: int, message: Mapping[str, Any], place: str) -> Record | None:
        """None: it is not asked for, or can't be read."""
        try:
            offset, time = int(message["SequenceNumber"]), _seconds(message["EnqueuedTimeUtc"])
            system = {name.lower().replace("_", "-"): value for name, value in (message.get("SystemProperties") or {}).items()}
            headers = headers_of(message.get("Properties") or {}, system.get("content-type"))
            record = record_of("capture", number, offset, round(time * 1000), headers, message.get("Body"))
        except (KeyError, TypeError, ValueError) as error:
            self.unreadable.add(place, f"no record of Event Hubs Capture: {error!r}")
            return None
        if not self._stretch.kept([record]):
            return None
        if offset < self._reached.get(number, 0):
            self.unreadable.add(place, f"{number}:{offset} stands behind later ones of its partition, or is there twice")
            return None
        self._reached[number] = offset + 1
        if record.event.type == UNREADABLE:
            self.unreadable.add(f"{place} ({number}:{offset})", record.event.extensions["reason"])
        return record


_UNFIT = (ValueError, KeyError, TypeError, IndexError, StopIteration)
"""What fastavro raises on a file that is no Avro, or damaged."""


def _messages(stream: BinaryIO) -> Iterator[Mapping[str, Any]]:
    import fastavro

    if stream.peek(1):  # type: ignore[attr-defined]  # a file without a byte is one of no events
        yield from cast("Iterator[Mapping[str, Any]]", fastavro.reader(stream))


def captured(url: str, stretch: Stretch) -> list[tuple[datetime, int, str, File]]:
    """The files that may hold something of the stretch, in order: the time in their name, partition, the hub's folder, the file."""
    fs, root = file_system(url)
    if root.endswith(".avro") or "*" in root:
        files = files_of(url, [".avro"])
    else:
        files = [file_of(fs, path, info) for path, info in _walk(fs, root.rstrip("/"), stretch)]
    found = []
    for file in files:
        if match := _PATH.search(file.path):
            number, *parts = map(int, match.groups())
            found.append((datetime(*parts, tzinfo=UTC), number, file.path[: match.start()], file))  # type: ignore[arg-type, misc]
    if not found and not _PATH.search(root):
        if not fs.exists(root):
            raise SettingsError([f"{shown(url)}: there is no such folder"])
        if stretch.whole:
            raise SettingsError(
                [f"{shown(url)}: no file there is named as Capture does: .../PARTITION/YEAR/MONTH/DAY/HOUR/MINUTE/SECOND.avro"]
            )
    wanted = [one for one in found if stretch.of_partition(one[1]) and _may_hold(one[0], one[0], stretch)]
    return sorted(wanted, key=lambda one: (one[0], one[1], one[3].path))


def _walk(fs: Any, folder: str, stretch: Stretch) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files below, without a look into folders of other times or partitions."""
    for info in sorted(fs.ls(folder, detail=True), key=lambda info: str(info["name"])) if fs.isdir(folder) else ():
        path = str(info["name"]).rstrip("/")
        if info["type"] != "directory":
            if path.endswith(".avro"):
                yield path, info
        elif _folder_may_hold(path, stretch):
            yield from _walk(fs, path, stretch)


_FOLDER = re.compile(r"(?:^|/)(\d+)/(\d{4})(?:/(\d\d?))?(?:/(\d\d?))?(?:/(\d\d?))?(?:/(\d\d?))?$")


def _folder_may_hold(path: str, stretch: Stretch) -> bool:
    match = _FOLDER.search(path)
    if match is None:
        return True
    number, *parts = [int(part) for part in match.groups() if part is not None]
    if not stretch.of_partition(number) or any(not low <= part <= high for part, (low, high) in zip(parts, _RANGES, strict=False)):
        return False
    first = datetime(*(*parts, 1, 1)[: max(3, len(parts))], tzinfo=UTC)  # type: ignore[arg-type, misc]
    spans = {1: timedelta(days=366), 2: timedelta(days=31), 3: timedelta(days=1), 4: timedelta(hours=1), 5: timedelta(minutes=1)}
    return _may_hold(first, first + spans[len(parts)], stretch)


_RANGES = ((1, 9999), (1, 12), (1, 31), (0, 23), (0, 59))


def _may_hold(first: datetime, last: datetime, stretch: Stretch) -> bool:
    return (last + _SLACK).timestamp() >= stretch.since and (first - _SLACK).timestamp() < stretch.until


def _seconds(text: str) -> float:
    """Capture's times: "10/1/2026 12:00:00 AM", or ISO 8601; always UTC."""
    known = _known.get(text)
    if known is None:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        known = _known[text] = _parsed(text)
    return known


def _parsed(text: str) -> float:
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        for form in _TIMES:
            try:
                return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
            except ValueError:
                continue
    raise ValueError(f"EnqueuedTimeUtc {text[:60]!r} is no time")
