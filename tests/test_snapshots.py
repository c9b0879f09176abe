"""Snapshots: what is written comes back or is refused clearly, and whoever is behind can hide, overwrite or delete nothing newer."""

import logging
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

import fsspec
import msgspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import SettingsError, SnapshotError
from streaming.snapshots import Snapshot, SnapshotStore, decode, encode
from streaming.testing import poll_until

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(width=64), st.text(), st.binary())
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)), max_leaves=20
)
BODIES = st.dictionaries(st.text(), VALUES, max_size=4)
SMALL = Snapshot(3, 42, {"fleet": {"b": [1, 2.5, None], "a": b"\x00\xff"}, "actions": ["x"]})


def forged(body, /, header=None, **fields):
    """A snapshot of any content, its digest right: the format as its module tells it."""
    body = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    told = {"partition": 3, "position": 42, "log": "log", "written": 0.0, "body": len(body), "versions": {}}
    head = msgspec.msgpack.encode({**told, **fields}) if header is None else header
    prefix = struct.pack(">8sHI", b"DRIFTSNP", 1, len(head))
    return prefix + blake2b(prefix + head + body, digest_size=32).digest() + head + body


# The format


@settings(deadline=None)
@given(BODIES, st.integers(0, 2**31), st.integers(0, 2**63 - 1), st.text(max_size=20))
def test_what_is_written_comes_back(body, partition, position, identity):
    found = decode(encode(Snapshot(partition, position, body), identity), identity, partition=partition)
    assert (found.partition, found.position) == (partition, position)
    assert repr(found.body) == repr(body), "in the same order, with every NaN and -0.0"


def test_when_it_is_written_is_no_part_of_the_memory():
    early, late = encode(SMALL, "log", now=1.0), encode(SMALL, "log", now=2.0)
    assert early == encode(SMALL, "log", now=1.0)
    assert early != late
    assert decode(early, "log") == decode(late, "log") == SMALL
    assert decode(encode(SMALL, "log"), "log") == SMALL


def test_the_format_is_the_one_that_is_described():
    assert decode(forged(SMALL.body), "log", partition=3) == SMALL
    head = encode(SMALL, "log", now=7.0)[46:]
    length = struct.unpack_from(">I", encode(SMALL, "log", now=7.0), 10)[0]
    told = msgspec.msgpack.decode(head[:length])
    assert {**told, "versions": 0} == {
        "partition": 3,
        "position": 42,
        "log": "log",
        "written": 7.0,
        "body": len(head) - length,
        "versions": 0,
    }
    assert told["versions"].keys() == {"driftloop", "river", "numpy"}
    assert told["versions"]["numpy"] == np.__version__


TOO_DEEP: list[object] = []
for _ in range(80):
    TOO_DEEP = [TOO_DEEP]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ((1, 2), "a tuple"),
        ({1, 2}, "a set"),
        (np.float64(1.0), "a float64"),
        (np.zeros(2), "a ndarray"),
        (datetime.now(UTC), "a datetime"),
        (SMALL, "a Snapshot"),
        ({1: 2}, "keys that are no texts: int"),
        (2**64, "cannot be stored"),
        ("\ud800", "cannot be stored"),
        (TOO_DEEP, "more than 64"),
    ],
)
def test_anything_but_plain_values_is_refused_before_it_is_written(value, says):
    for body in ({"fleet": value}, {"fleet": [1, {"deeper": value}]}):
        with pytest.raises(SnapshotError, match=says):
            encode(Snapshot(3, 0, body), "log")


def test_a_snapshot_that_is_cut_anywhere_is_refused():
    whole = encode(SMALL, "log")
    for length in range(len(whole)):
        with pytest.raises(SnapshotError):
            decode(whole[:length], "log")
    with pytest.raises(SnapshotError, match="damaged"):
        decode(whole + b"\0", "log")


def test_a_snapshot_with_any_bit_turned_is_refused():
    whole = encode(SMALL, "log", now=0.0)
    for place in range(len(whole)):
        for bit in range(8):
            turned = bytearray(whole)
            turned[place] ^= 1 << bit
            with pytest.raises(SnapshotError):
                decode(bytes(turned), "log")


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(content, begins_well):
    with pytest.raises(SnapshotError):
        decode((b"DRIFTSNP\x00\x01" if begins_well else b"") + content, "log")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_content_that_nobody_wrote_is_refused_although_its_digest_is_right(content, as_header):
    data = forged({}, header=content) if as_header else forged(content)
    try:
        found = decode(data, "log")
    except SnapshotError:
        return
    assert not as_header
    assert encode(found, "log"), "plain values after all"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no snapshot"),
        (b"PK\x03\x04" + bytes(100), "no snapshot"),
        (encode(SMALL, "log", now=0.0)[:20], "no snapshot"),
        (b"DRIFTSNP\x00\x02" + bytes(100), "of format 2, and this driftloop reads format 1"),
        (encode(SMALL, "another log", now=0.0), "of the log 'another log', not of 'log'"),
        (encode(Snapshot(4, 0, {}), "log", now=0.0), "of partition 4, not of 3"),
        (forged({}, body=7), "body of 1 bytes, and its header says 7"),
        (forged([1]), "its body is a list"),
        (forged(b"\x81\xa1a\xd4\x05x"), "an? Ext"),
        (forged(b"\x81\xa1a\xd6\xff\x00\x00\x00\x00"), "a datetime"),
        (forged({"a": {1: 2}}), "keys that are no texts"),
        (forged(b"\x81\xa1a" + b"\x91" * 70 + b"\xc0"), "more than 64"),
        (forged(b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0"), "cannot be read"),
        (forged(b"\x81\xa1a\xdd\xff\xff\xff\xff"), "truncated"),
        (forged(b"\x81\xa1a\xa2\xff\xfe"), "cannot be read"),
        (forged({}, partition="3"), "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_snapshot_is_told(data, says):
    with pytest.raises(SnapshotError, match=says):
        decode(data, "log", partition=3)


# The store, on a local disk and on what stands for an object store


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "not" / "there" / "yet")
    else:
        MemoryFileSystem.store.clear()
        MemoryFileSystem.pseudo_dirs[:] = [""]
        yield "memory://bucket/snapshots"
        MemoryFileSystem.store.clear()


def content(position, log="log", partition=0, **body):
    return encode(Snapshot(partition, position, body or {"at": position}), log)


def saved(store, *positions, partition=0):
    for position in positions:
        store.save(partition, position, content(position, partition=partition))


def files(place):
    fs, root = fsspec.core.url_to_fs(place)
    return sorted(path.removeprefix(root).lstrip("/") for path in fs.find(root))


def positions(place):
    return [int(path.rpartition("/")[2].removesuffix(".snapshot")) for path in files(place)]


def position(store, partition=0):
    found = store.load(partition)
    return found and found.position


def write(place, name, data):
    fs, root = fsspec.core.url_to_fs(place)
    fs.makedirs(f"{root}/log/0", exist_ok=True)
    fs.pipe_file(f"{root}/log/0/{name}", data)


def test_nothing_is_there_before_the_first_snapshot(place):
    assert SnapshotStore(place, "log").load(0) is None


def test_the_newest_is_loaded_and_the_older_ones_go(place):
    store = SnapshotStore(place, "log")
    saved(store, 5, 9, 100, 99_999, 100_000)
    assert store.load(0) == Snapshot(0, 100_000, {"at": 100_000})
    assert SnapshotStore(place, "log").load(0) == store.load(0)
    assert files(place) == [f"log/0/{number:020d}.snapshot" for number in (99_999, 100_000)]


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_are_kept_as_was_said(place, keep):
    saved(SnapshotStore(place, "log", keep=keep), 1, 2, 3, 4, 5)
    assert len(files(place)) == keep
    with pytest.raises(ValueError, match="keep"):
        SnapshotStore(place, "log", keep=0)


def test_partitions_and_logs_do_not_mix(place):
    store, other = SnapshotStore(place, "log"), SnapshotStore(place, "log2")
    saved(store, 1, 2, 3)
    saved(store, 7, 8, 9, partition=12)
    other.save(0, 50, content(50, "log2"))
    assert (position(store), position(store, 12), position(store, 1), position(other)) == (3, 9, None, 50)


@pytest.mark.parametrize("identity", ["a/b", "../../etc", "", ".", "..", "a\0b", "x" * 400, "Größe", "a b"])
def test_any_text_can_name_a_log(place, identity):
    store, other = SnapshotStore(place, identity), SnapshotStore(place, identity + "x")
    store.save(0, 1, content(1, identity))
    other.save(0, 2, content(2, identity + "x"))
    assert (position(store), position(other)) == (1, 2)
    assert len({path.partition("/")[0] for path in files(place)}) == 2
    assert all(path.count("/") == 2 and ".." not in path for path in files(place))


def test_logs_whose_names_differ_only_by_case_or_punctuation_have_folders_of_their_own(tmp_path):
    for identity in ("topic", "Topic", "TOPIC", "to/pic", "to pic", "to_pic"):
        SnapshotStore(str(tmp_path), identity).save(0, 1, content(1, identity))
    assert len({path.name.lower() for path in tmp_path.iterdir()}) == 6


def test_a_stale_owner_that_saves_late_hides_and_deletes_nothing_newer(place):
    stale, owner = SnapshotStore(place, "log"), SnapshotStore(place, "log")
    saved(stale, 10, 20)
    saved(owner, 30, 40)
    saved(stale, 25)
    assert position(owner) == position(stale) == 40
    assert positions(place) == [25, 30, 40]
    saved(stale, 35)
    assert positions(place) == [35, 40]
    assert position(owner) == 40
    saved(owner, 50)
    assert positions(place) == [40, 50], "and the next one of the owner's clears up"


def test_a_stale_owner_deletes_only_what_is_behind_itself(place):
    owner, stale = SnapshotStore(place, "log", keep=1), SnapshotStore(place, "log", keep=1)
    for number in (10, 20, 40):
        write(place, f"{number:020d}.snapshot", content(number))
    saved(stale, 20)
    assert positions(place) == [20, 40]
    assert position(owner) == 40


def test_the_same_position_again_mends_what_was_damaged(place):
    store = SnapshotStore(place, "log")
    saved(store, 10)
    write(place, f"{10:020d}.snapshot", b"torn")
    assert store.load(0) is None
    saved(store, 10)
    assert position(store) == 10


def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(place, caplog):
    store = SnapshotStore(place, "log")
    saved(store, 10, 20)
    for wrong, says in (
        (content(20)[:-1], "damaged"),
        (b"", "no snapshot"),
        (content(19), "its name says 20"),
        (content(20, "x"), "of the log 'x'"),
        (content(20, partition=1), "of partition 1"),
    ):
        write(place, f"{20:020d}.snapshot", wrong)
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            assert position(store) == 10
        assert says in caplog.text
        assert f"{20:020d}.snapshot" in caplog.text


def test_when_none_can_be_read_the_log_is_read_from_its_start_and_it_is_said(place, caplog):
    store = SnapshotStore(place, "log")
    for number in (10, 20):
        write(place, f"{number:020d}.snapshot", b"torn")
    assert store.load(0) is None
    assert "no snapshot of partition 0 can be read" in caplog.text


def test_other_files_are_left_alone(place):
    store = SnapshotStore(place, "log")
    for name in ("README", "123.snapshot", f"{10**20 - 1}.snapshot.bak", f".{5:020d}.9.tmp"):
        write(place, name, b"mine")
    saved(store, 1, 2, 3)
    assert position(store) == 3
    assert len(files(place)) == 4 + 2


def test_what_is_of_a_log_that_is_no_more_can_be_discarded(place):
    store = SnapshotStore(place, "log")
    saved(store, 5000, 6000)
    saved(store, 7000, partition=1)
    store.discard(0)
    store.discard(9)
    assert (position(store), position(store, 1)) == (None, 7000)
    saved(store, 3)
    assert position(store) == 3


@pytest.mark.parametrize(("partition", "at"), [(-1, 0), (0, -1), (0, 10**20)])
def test_a_place_that_no_log_has_is_refused(place, partition, at):
    with pytest.raises(ValueError, match="negative"):
        SnapshotStore(place, "log").save(partition, at, b"")


# A local disk


@contextmanager
def files_of_at_most(size):
    """As on a disk that is full: the kernel refuses to write more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_breaks_nothing_and_leaves_nothing_behind(tmp_path):
    store = SnapshotStore(str(tmp_path), "log")
    saved(store, 10, 20)
    with files_of_at_most(1000), pytest.raises(SnapshotError, match=r"cannot write the snapshot of partition 0 at 30: File too large"):
        store.save(0, 30, content(30, blob=b"x" * 100_000))
    assert position(store) == 20
    assert len(list((tmp_path / "log" / "0").iterdir())) == 2
    saved(store, 30)
    assert position(store) == 30


def test_a_place_that_is_no_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SnapshotError, match="cannot write the snapshot of partition 0 at 1: "):
        SnapshotStore(str(tmp_path / "file"), "log").save(0, 1, content(1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told_for_writing_and_for_reading(tmp_path):
    store = SnapshotStore(str(tmp_path), "log")
    saved(store, 1)
    folder = tmp_path / "log" / "0"
    try:
        folder.chmod(0o500)
        with pytest.raises(SnapshotError, match="Permission denied"):
            saved(store, 2)
        folder.chmod(0o000)
        with pytest.raises(SnapshotError, match="Permission denied"):
            store.load(0)
    finally:
        folder.chmod(0o700)
    assert position(store) == 1


def test_what_a_killed_writer_left_is_swept_when_nobody_can_be_writing_it_any_more(tmp_path):
    store = SnapshotStore(str(tmp_path), "log")
    saved(store, 1)
    left, fresh = (tmp_path / "log" / "0" / name for name in (".00000000000000000002.1.ab.tmp", ".00000000000000000003.1.cd.tmp"))
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 3600, time.time() - 3600))
    saved(store, 4)
    assert (left.exists(), fresh.exists()) == (False, True)


def test_the_content_is_on_the_disk_before_it_has_its_name_and_the_name_before_save_returns(tmp_path, monkeypatch):
    final = tmp_path / "log" / "0" / f"{7:020d}.snapshot"
    synced = []
    real = os.fsync

    def fsync(handle):
        path = Path(f"/proc/self/fd/{handle}").readlink() if Path("/proc/self/fd").exists() else None
        synced.append((path, final.exists(), os.fstat(handle)))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    store = SnapshotStore(str(tmp_path), "log")
    saved(store, 7)
    assert [named for _, named, _ in synced] == [False] * (len(synced) - 1) + [True]
    assert (synced[-2][2].st_ino, synced[-2][2].st_size) == (final.stat().st_ino, final.stat().st_size), "the very file that was synced"
    if synced[0][0]:
        assert [path for path, _, _ in synced] == [tmp_path, tmp_path / "log", synced[2][0], final.parent]


def test_a_writer_that_is_killed_leaves_a_snapshot_that_can_be_read(tmp_path):
    script = """if True:
        import sys
        from streaming.snapshots import Snapshot, SnapshotStore, encode
        store, position = SnapshotStore(sys.argv[1], "log"), int(sys.argv[2])
        while True:
            position += 1
            store.save(0, position, encode(Snapshot(0, position, {"at": position, "blob": bytes(3_000_000)}), "log"))
    """
    path = os.pathsep.join(filter(None, sys.path))
    store, reached = SnapshotStore(str(tmp_path), "log"), 0
    for moment in (0.0, 0.003, 0.011):
        writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(reached)], env={**os.environ, "PYTHONPATH": path})
        try:
            assert poll_until(lambda until=reached + 2: (position(store) or 0) > until, timeout=20)
            time.sleep(moment)
        finally:
            writer.kill()
            writer.wait()
        found = store.load(0)
        assert found.body["at"] == found.position > reached
        reached = found.position


# A store that is away, slow to tell, or not to be told


class Cloud(MemoryFileSystem):
    """An object store as they are: errors of its own, and listings that it remembers until told not to."""

    protocol = "cloud"
    store = {}  # noqa: RUF012 - as its parent has it
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False
    away = ""
    before_reading = None
    listings = {}  # noqa: RUF012

    def __init__(self, **options):
        super().__init__()

    def _answer(self, call):
        if self.away and call in self.away:
            raise RuntimeError("503 Server Busy\nhttps://x.blob/y?sig=abc%3D&se=1 AccountKey=zzz; token-123456789")

    def ls(self, path, detail=True, **kwargs):
        self._answer("ls")
        if path not in self.listings:
            self.listings[path] = super().ls(path, detail=detail, **kwargs)
        return self.listings[path]

    def invalidate_cache(self, path=None):
        self.listings.pop(path, None)

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self._answer("pipe")
        super().pipe_file(path, value, mode=mode, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._answer("cat")
        if Cloud.before_reading:
            Cloud.before_reading(path)
        return super().cat_file(path, start=start, end=end, **kwargs)

    def rm_file(self, path):
        self._answer("rm")
        super().rm_file(path)


@pytest.fixture
def cloud():
    fsspec.register_implementation("cloud", Cloud, clobber=True)
    yield Cloud
    Cloud.store.clear()
    Cloud.listings.clear()
    Cloud.away, Cloud.before_reading = "", None


@pytest.mark.parametrize(
    ("away", "says"), [("ls", "cannot list the snapshots of partition 0"), ("cat", "cannot read the snapshot of partition 0 at 2")]
)
def test_a_store_that_is_away_is_no_empty_store(cloud, away, says):
    store = SnapshotStore("cloud://bucket", "log")
    saved(store, 1, 2)
    cloud.away = away
    with pytest.raises(SnapshotError, match=f"cloud://bucket: {says}: 503 Server Busy"):
        store.load(0)
    cloud.away = ""
    assert position(store) == 2


def test_a_store_that_cannot_be_written_keeps_what_it_had(cloud):
    store = SnapshotStore("cloud://bucket", "log")
    saved(store, 1)
    cloud.away = "pipe"
    with pytest.raises(SnapshotError, match="cannot write the snapshot of partition 0 at 2: 503 Server Busy"):
        saved(store, 2)
    assert position(store) == 1


def test_a_snapshot_is_saved_although_the_old_ones_cannot_be_deleted(cloud, caplog):
    store = SnapshotStore("cloud://bucket", "log")
    cloud.away = "rm"
    saved(store, 1, 2, 3, 4)
    assert position(store) == 4
    assert caplog.text.count("old snapshots of partition 0 cannot be deleted: 503 Server Busy") == 1, "told once"
    cloud.away = ""
    saved(store, 5)
    assert len(Cloud.store) == 2


def test_what_another_wrote_is_seen_by_a_store_that_remembers_listings(cloud):
    reader, writer = SnapshotStore("cloud://bucket", "log"), SnapshotStore("cloud://bucket", "log")
    saved(writer, 1)
    assert position(reader) == 1
    (path,) = Cloud.store
    MemoryFileSystem.pipe_file(Cloud(), path.replace("1.snapshot", "2.snapshot"), content(2))
    assert position(reader) == 2


def test_a_snapshot_that_is_pruned_between_listing_and_reading_is_no_missing_one(cloud):
    store = SnapshotStore("cloud://bucket", "log")
    saved(store, 1, 2)

    def prune_first(path):
        cloud.before_reading = None
        saved(SnapshotStore("cloud://bucket", "log"), 3, 4)

    cloud.before_reading = prune_first
    assert position(store) == 4


def test_snapshots_that_always_vanish_are_an_error_and_no_empty_store(cloud):
    store = SnapshotStore("cloud://bucket", "log")
    saved(store, 1)

    def vanish(path):
        raise FileNotFoundError(path)

    cloud.before_reading = vanish
    with pytest.raises(SnapshotError, match="vanish"):
        store.load(0)


def test_secrets_are_in_no_error_and_no_log(cloud, caplog):
    store = SnapshotStore("cloud://user:hunter22@bucket/x", "log", storage_options={"account_key": "token-123456789"})
    cloud.away = "pipe ls rm cat"
    with pytest.raises(SnapshotError) as caught:
        saved(store, 1)
    assert "cloud://***@bucket/x" in str(caught.value)
    message = RuntimeError("refused https://x/y?sig=abc%3D&se=1 AccountKey=zzz; token-123456789")
    told = store._told(message)
    for text in (str(caught.value), caplog.text, told, repr(store)):
        assert not any(secret in text for secret in ("hunter22", "abc", "zzz", "token-123456789"))
    assert told == "refused https://x/y?sig=***&se=1 AccountKey=***; ***"


@pytest.mark.parametrize("url", ["abfs://container/path", "abfss://c@account.dfs.core.windows.net/p", "az://container"])
def test_what_is_missing_for_azure_is_told(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(SettingsError, match=r"snapshots in \w+://.*: \w+:// needs a package more: pip install 'driftloop\[azure\]'"):
        SnapshotStore(url, "log")


def test_what_is_missing_for_another_store_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(SettingsError, match=r"s3:// needs a package more: .*s3fs"):
        SnapshotStore("s3://bucket", "log")


def test_a_url_of_no_known_kind_is_told():
    with pytest.raises(SettingsError, match="snapshots in floppy://a: Protocol not known: floppy"):
        SnapshotStore("floppy://a", "log")
