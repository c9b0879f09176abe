"""Files behind an fsspec URL: one, a folder of them or a pattern; opened whatever they are compressed with, read block by block."""

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from inference.errors import SettingsError

BLOCK = 1 << 20
MAX_LINE = 32 * 1024 * 1024
"""Bytes: a longer line is no record of ours, and is not kept in memory to find out."""

_AZURE = ("abfs", "abfss", "az")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
BROKEN = (OSError, EOFError, zlib.error)
"""What reading a file that is damaged or away raises, whatever it is compressed with."""


@dataclass(frozen=True, slots=True)
class File:
    """`name` is its URL without credentials, `modified` seconds since 1970 (0.0 where the store does not tell)."""

    name: str
    path: str
    modified: float
    fs: Any


def shown(url: str) -> str:
    """The URL without what may be secret in it."""
    return re.sub(r"//[^/@]*:[^/@]*@", "//***@", re.sub(r"(?i)([?&](?:sig|se|sv|token)=)[^&]+", r"\1***", url))


def file_system(url: str) -> tuple[Any, str]:
    """What reaches the URL, and its path there. SettingsError: nothing does, or a package is missing."""
    kind = url.partition("://")[0] if "://" in url else ""
    options: dict[str, Any] = {}
    if kind in _AZURE:
        if find_spec("adlfs") is None:
            raise SettingsError([f"{shown(url)}: {kind}:// needs a package more: pip install 'driftloop[azure]'"])
        options["anon"] = False
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise SettingsError([f"{shown(url)}: {kind}:// needs a package more: {error}"]) from error
    except ValueError as error:
        raise SettingsError([f"{shown(url)}: {error}"]) from error
    return found


def files_of(url: str, suffixes: Sequence[str] = ()) -> list[File]:
    """The file that the URL names; of a folder all files below it, of a pattern those that fit, by name, with one of the suffixes.

    SettingsError: there is none.
    """
    fs, path = file_system(url)
    try:
        if any(sign in path for sign in "*?["):
            found = fs.glob(path, detail=True)
        elif fs.isdir(path):
            found = fs.find(path, detail=True)
        else:
            return [file_of(fs, path, fs.info(path))]
    except FileNotFoundError:
        raise SettingsError([f"{shown(url)}: there is no such file"]) from None
    except OSError as error:
        raise SettingsError([f"{shown(url)}: cannot be read: {error}"]) from error
    names = [name for name, info in sorted(found.items()) if info["type"] == "file" and name.endswith(tuple(suffixes) or "")]
    if not names:
        raise SettingsError([f"{shown(url)}: there is no file{f' that ends with {chr(32).join(suffixes)}' if suffixes else ''}"])
    return [file_of(fs, name, found[name]) for name in names]


def file_of(fs: Any, path: str, info: dict[str, Any]) -> File:
    """A file that the store listed."""
    return File(shown(path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path)), path, modified(info), fs)


def modified(info: dict[str, Any]) -> float:
    """When a file was written last: stores call it by different names."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        told = info.get(name)
        if isinstance(told, datetime):
            return told.timestamp()
        if isinstance(told, int | float):
            return float(told)
        if isinstance(told, str):
            return datetime.fromisoformat(told).timestamp()
    return 0.0


@contextmanager
def opened(file: File) -> Iterator[BinaryIO]:
    """The file's content, gunzipped or unpacked from zstd where it begins so. Its errors are `BROKEN`."""
    with file.fs.open(file.path, "rb") as raw:
        buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, BLOCK)
        head = buffered.peek(4)[:4]
        if head.startswith(_GZIP):
            yield cast("BinaryIO", gzip.GzipFile(fileobj=buffered))
        elif head == _ZSTD:
            import pyarrow

            with pyarrow.CompressedInputStream(pyarrow.PythonFile(buffered, mode="r"), "zstd") as unpacked:
                yield cast("BinaryIO", unpacked)
        else:
            yield cast("BinaryIO", buffered)


def lines_of(stream: BinaryIO, count: int) -> Iterator[list[bytes]]:
    """The lines without their ends, `count` at a time; one longer than MAX_LINE comes as b"\\n", which is no line.

    When the stream breaks off, what was read of it comes first.
    """
    waiting: list[bytes] = []
    try:
        for lines in _blocks(stream):
            waiting += lines
            for start in range(0, len(waiting) - count + 1, count):
                yield waiting[start : start + count]
            waiting = waiting[len(waiting) // count * count :]
    except BROKEN:
        if waiting:
            yield waiting
        raise
    if waiting:
        yield waiting


def _blocks(stream: BinaryIO) -> Iterator[list[bytes]]:
    rest, skipping = b"", False
    # Not `read`, which gives nothing of a block in which a file breaks off.
    while block := stream.read1(BLOCK):  # type: ignore[attr-defined]
        *lines, last = (rest + block).split(b"\n")
        if skipping and lines:
            lines[0], skipping = b"\n", False
        rest = last
        if len(rest) > MAX_LINE or skipping:
            rest, skipping = b"", True
        if lines:
            yield lines
    if rest or skipping:
        yield [b"\n" if skipping else rest]
