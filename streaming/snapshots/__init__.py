"""Snapshots: what a watcher remembers of a partition and the position that this memory belongs to, as one file."""

from streaming.snapshots.format import Snapshot, decode, encode
from streaming.snapshots.store import SnapshotStore

__all__ = ["Snapshot", "SnapshotStore", "decode", "encode"]
