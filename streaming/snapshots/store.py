"""Where snapshots are kept: a folder, a volume, or anything that fsspec reaches (`abfs://`, `s3://`, `memory://`, ...).

    <url>/<log>/<partition>/<position, 20 digits>.snapshot

A file is written once, whole or not at all, and its name says how far it is. Who takes a partition over loads the highest
position, so a watcher that has lost the partition and does not know it yet, and therefore is behind, can neither hide what
the new owner saved nor overwrite it; and whoever prunes deletes only what is behind his own snapshot. The same position
holds the same memory, whoever writes it: memory is a function of the log.
"""

import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from inference.errors import SettingsError, SnapshotError
from streaming.snapshots.format import MAX_BYTES, Snapshot, decode

log = logging.getLogger(__name__)

_NAME = re.compile(r"(\d{20})\.snapshot")
_ABANDONED = 600.0
"""Seconds after which nobody is still writing a temporary file."""
_LISTINGS = 5
_AZURE = ("abfs", "abfss", "az")


class SnapshotStore:
    """The snapshots of one log, the newest `keep` of each partition; safe for several threads.

    `storage_options` go to fsspec as they are (time-outs, credentials). On Azure, without credentials among them or in the
    environment, azure-identity finds who we are (a workload identity, a managed identity, `az login`).
    SettingsError: the URL's kind is not known or needs a package that is not installed.
    """

    def __init__(self, url: str, log_identity: str, *, keep: int = 2, storage_options: Mapping[str, Any] | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self._log_identity = log_identity
        self._keep = keep
        options = dict(storage_options or {})
        self._secrets = [value for value in options.values() if isinstance(value, str) and len(value) >= 8]
        self._url = re.sub(r"//[^/@:]*:[^/@]*@", "//***@", url)
        self._fs, root = self._opened(url, options)
        self._folder = f"{root.rstrip('/')}/{_file_name(log_identity)}"
        self._prune_failed = False

    def save(self, partition: int, position: int, data: bytes) -> None:
        """Keep `data`, which `encode` made; when this returns, it is there to stay. SnapshotError: it is not, and the snapshots
        before it are untouched."""
        if partition < 0 or not 0 <= position < 10**20:
            raise ValueError(f"partition {partition}, position {position}: neither can be negative")
        path = self._path(partition, position)
        with self._translated(f"write the snapshot of partition {partition} at {position}"):
            if isinstance(self._fs, LocalFileSystem):
                _write(Path(path), data)
            else:
                self._fs.pipe_file(path, data)
        self._prune(partition, position)

    def load(self, partition: int) -> Snapshot | None:
        """The snapshot with the highest position that can be read; None when there is none.

        One that is damaged or foreign is told to the log and left alone. SnapshotError: the store is away; the snapshots
        may well be there, so that it is wrong to go on without.
        """
        for _ in range(_LISTINGS):
            with suppress(FileNotFoundError):
                return self._newest(partition)
            # A file was pruned between the listing and the reading: there is a newer one now.
        raise SnapshotError(f"{self._url}: the snapshots of partition {partition} vanish again and again while they are read")

    def discard(self, partition: int) -> None:
        """Delete every snapshot of the partition: they turned out to be of a log that is no more."""
        with self._translated(f"delete the snapshots of partition {partition}"):
            for position in self._positions(partition):
                self._delete(partition, position)

    def _newest(self, partition: int) -> Snapshot | None:
        with self._translated(f"list the snapshots of partition {partition}"):
            positions = self._positions(partition)
        for position in positions:
            path = self._path(partition, position)
            with self._translated(f"read the snapshot of partition {partition} at {position}", but=FileNotFoundError):
                size = self._fs.size(path)
                data = self._fs.cat_file(path) if size <= MAX_BYTES else b""
            try:
                if size > MAX_BYTES:
                    raise SnapshotError(f"it has {size} bytes; at most {MAX_BYTES} are read")
                snapshot = decode(data, self._log_identity, partition=partition)
                if snapshot.position != position:
                    raise SnapshotError(f"it is of position {snapshot.position}, and its name says {position}")
            except SnapshotError as error:
                log.error("the snapshot %s is left alone: %s", path, error)
            else:
                return snapshot
        if positions:
            log.error("no snapshot of partition %d can be read; the log is read from its start", partition)
        return None

    def _positions(self, partition: int) -> list[int]:
        """The highest first."""
        folder = f"{self._folder}/{partition}"
        self._fs.invalidate_cache(folder)
        try:
            paths = self._fs.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        found = (_NAME.fullmatch(str(path).rpartition("/")[2]) for path in paths)
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _prune(self, partition: int, position: int) -> None:
        """Delete what is behind `position` and not among the newest. It is no failure of the saving when that fails."""
        try:
            for old in self._positions(partition)[self._keep :]:
                if old < position:
                    self._delete(partition, old)
            if isinstance(self._fs, LocalFileSystem):
                _sweep(Path(self._path(partition, position)).parent)
        except Exception as error:  # noqa: BLE001 - as in `_translated`
            if not self._prune_failed:
                log.warning("old snapshots of partition %d cannot be deleted: %s", partition, self._told(error))
            self._prune_failed = True
        else:
            self._prune_failed = False

    def _delete(self, partition: int, position: int) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(partition, position))

    def _path(self, partition: int, position: int) -> str:
        return f"{self._folder}/{partition}/{position:020d}.snapshot"

    def _opened(self, url: str, options: dict[str, Any]) -> tuple[Any, str]:
        kind = url.partition("://")[0] if "://" in url else ""
        if kind in _AZURE:
            if find_spec("adlfs") is None:
                raise SettingsError([f"snapshots in {self._url}: {kind}:// needs a package more: pip install 'driftloop[azure]'"])
            options.setdefault("anon", False)
        try:
            found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
            return found
        except ImportError as error:
            raise SettingsError([f"snapshots in {self._url}: {kind}:// needs a package more: {error}"]) from error
        except ValueError as error:
            raise SettingsError([f"snapshots in {self._url}: {self._told(error)}"]) from error
        except Exception as error:
            raise SnapshotError(f"{self._url} cannot be reached: {self._told(error)}") from error

    @contextmanager
    def _translated(self, task: str, *, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
        """Every file system has errors of its own; those that the caller understands go through."""
        try:
            yield
        except but:
            raise
        except Exception as error:
            raise SnapshotError(f"{self._url}: cannot {task}: {self._told(error)}") from error

    def _told(self, error: Exception) -> str:
        """An error of somebody else's on one line, without what we were given in confidence."""
        text = (isinstance(error, OSError) and error.strerror) or str(error).strip().partition("\n")[0] or type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return re.sub(r"(?i)\b(sig|accountkey|sharedaccesskey|password)=[^&;\s]+", r"\1=***", text)[:500]


def _file_name(identity: str) -> str:
    """`identity` as a folder's name, a different one for a different identity, on disks that ignore case too."""
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", identity):
        return identity
    return f"{re.sub(r'[^a-z0-9-]', '_', identity.lower())[:80]}-{blake2b(identity.encode(), digest_size=4).hexdigest()}"


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, and on the disk when this returns."""
    _make(path.parent)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o660), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync(path.parent)


def _make(folder: Path) -> None:
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Delete the temporary files of writers that were killed."""
    for path in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
