"""`driftloop record`: a stretch of a log, or of any source of events, written down as a recording that replays alike."""

import gzip
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from inference.errors import ServiceError
from streaming.sources.files import BROKEN, file_system, shown
from streaming.sources.recording import as_line
from streaming.sources.seam import EventSource


def write_recording(source: EventSource, url: str) -> int:
    """How many events were written; gzip or zstd as the name's suffix says (.gz, .zst). ServiceError: it can't be written.

    On this machine's disk the file is there whole or not at all.
    """
    count = 0
    fs, path = file_system(url)
    try:
        with _replacing(fs, path) as raw, _packed(raw, url) as stream:
            for records in source:
                stream.write(b"".join([as_line(record) + b"\n" for record in records]))
                count += len(records)
    except BROKEN as error:
        raise ServiceError(f"{shown(url)} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return count


@contextmanager
def _replacing(fs: object, path: str) -> Iterator[BinaryIO]:
    if not isinstance(fs, LocalFileSystem):
        with fs.open(path, "wb") as stream:  # type: ignore[attr-defined]
            yield stream
        return
    temporary = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with fs.open(temporary, "wb") as stream:
            yield stream
        fs.mv(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            fs.rm_file(temporary)
        raise


@contextmanager
def _packed(raw: BinaryIO, url: str) -> Iterator[BinaryIO]:
    if url.endswith(".gz"):
        # No time in its head: the same events are the same file.
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
            yield cast("BinaryIO", packed)
    elif url.endswith(".zst"):
        import pyarrow

        with pyarrow.CompressedOutputStream(pyarrow.PythonFile(raw, mode="w"), "zstd") as packed:
            yield cast("BinaryIO", packed)
    else:
        yield raw
