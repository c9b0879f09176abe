"""The embedded log: order, durability, several processes, retention, and what it says when it can't work."""

import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.errors import EventError, LogCorrupt, LogUnavailable, SettingsError
from inference.event import LABEL, REQUEST, Event
from inference.log import open_log
from inference.log.embedded import EmbeddedLog

ROOT = Path(__file__).parents[1]
MODELS = ("default/iris", "default/wine", "shop/fraud", "shop/churn", "bank/credit")


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def event(number: int, model: str = "default/iris", body: bytes = b'{"instances": [[1, 2]]}') -> Event:
    namespace, _, name = model.partition("/")
    extensions = {"namespace": namespace, "inferenceservicename": name, "endpoint": "", "annotations": '{"a/b":"3 %41 é"}'}
    return Event(f"id-{number}", "pod-1", REQUEST, "2026-11-23T10:11:36.664160349Z", "application/json", extensions, body)


def everything(log: EmbeddedLog, limit: int = 1000) -> dict[int, list[tuple[int, Event]]]:
    """The whole log by partition, read in chunks of `limit`."""
    positions = log.start_positions()
    found: dict[int, list[tuple[int, Event]]] = defaultdict(list)
    while records := log.read(positions, limit):
        assert len(records) <= limit
        for record in records:
            found[record.partition].append((record.offset, record.event))
            positions[record.partition] = record.offset + 1
    return dict(found)


def in_subprocess(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_what_was_appended_is_read_back_byte_for_byte(tmp_path):
    log = EmbeddedLog(tmp_path / "events.db")
    sent = [
        event(1, body=b"\x00\xff\x1f\x8b raw"),
        event(2, body=b""),
        Event("é\u2603", "s", LABEL, extensions={"namespace": "a", "inferenceservicename": "b"}),
    ]
    places = log.append(sent)
    records = log.read(log.start_positions())
    assert sorted((r.partition, r.offset) for r in records) == sorted(places)
    assert {(r.partition, r.offset): r.event for r in records} == dict(zip(places, sent, strict=True))


def test_all_events_of_a_model_stand_on_one_partition_the_same_in_every_process(tmp_path):
    log = EmbeddedLog(tmp_path / "events.db")
    # Literals: another hash would move a model's future away from its past on an existing log.
    assert [log.partition_of(model) for model in MODELS] == [2, 1, 1, 3, 0]
    places = log.append([event(n, model) for n, model in enumerate(MODELS)])
    assert [partition for partition, _ in places] == [2, 1, 1, 3, 0]
    assert log.end_positions() == {0: 1, 1: 2, 2: 1, 3: 1}


def test_the_number_of_partitions_is_fixed_when_the_file_is_made(tmp_path):
    path = tmp_path / "events.db"
    EmbeddedLog(path, partitions=7).close()
    assert sorted(EmbeddedLog(path, partitions=2).start_positions()) == [0, 1, 2, 3, 4, 5, 6]


def test_open_log_takes_a_path_or_embedded_and_makes_the_folders(tmp_path):
    for url in (str(tmp_path / "a" / "b" / "one.db"), f"embedded:{tmp_path}/c/two.db"):
        log = open_log(url)
        log.append([event(1)])
        log.close()
    assert (tmp_path / "a" / "b" / "one.db").is_file()
    assert (tmp_path / "c" / "two.db").is_file()


def test_a_read_merges_partitions_by_time_and_stops_at_its_limit(tmp_path):
    clock = Clock()
    log = EmbeddedLog(tmp_path / "events.db", clock=clock)
    for number in range(12):
        clock.now += 1
        log.append([event(number, MODELS[number % 3])])
    records = log.read(log.start_positions(), limit=8)
    assert [r.event.id for r in records] == [f"id-{n}" for n in range(8)]
    assert [r.timestamp for r in records] == [1_000_001.0 + n for n in range(8)]
    assert [r.offset for r in log.read({2: 2}, limit=8)] == [2, 3]
    assert log.read({2: 4}) == []
    assert log.read({}) == []
    assert log.read({2: 0}, limit=0) == []


def test_a_read_of_large_bodies_stops_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("inference.log.embedded.READ_BYTES", 250_000)
    log = EmbeddedLog(tmp_path / "events.db")
    log.append([event(n, body=bytes(100_000)) for n in range(5)])
    assert len(log.read({2: 0})) == 3
    assert [offset for offset, _ in everything(log)[2]] == [0, 1, 2, 3, 4]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.lists(st.lists(st.tuples(st.sampled_from(MODELS), st.binary(max_size=40)), max_size=6), max_size=8),
    ticks=st.lists(st.floats(-100, 100), min_size=8, max_size=8),
    limit=st.integers(1, 20),
    partitions=st.integers(1, 5),
)
def test_any_appends_read_in_any_chunks_give_the_same_sequence_per_partition(tmp_path, batches, ticks, limit, partitions):
    clock = Clock()
    path = tmp_path / f"{time.monotonic_ns()}-{random.random()}.db"
    log = EmbeddedLog(path, partitions=partitions, clock=clock)
    expected: dict[int, list[tuple[int, Event]]] = defaultdict(list)
    numbers = itertools.count()
    for batch, tick in zip(batches, ticks, strict=False):
        clock.now += tick
        events = [event(next(numbers), model, body) for model, body in batch]
        places = log.append(events)
        for (partition, offset), one in zip(places, events, strict=True):
            assert partition == log.partition_of(one.model)
            expected[partition].append((offset, one))
    for rows in expected.values():
        assert [offset for offset, _ in rows] == list(range(len(rows)))
    assert everything(log, limit) == everything(log, 1000) == dict(expected)
    log.close()


def test_append_is_all_or_nothing(tmp_path):
    log = EmbeddedLog(tmp_path / "events.db")
    odd = Event("x", "s", REQUEST, datacontenttype="application/cloudevents+json", data=b"{}")
    with pytest.raises(EventError, match="could not be read back") as raised:
        log.append([event(1), odd])
    assert raised.value.reason == "unreadable"
    with pytest.raises(EventError, match="attribute names must be lower case"):
        log.append([Event("x", "s", REQUEST, extensions={"Namespace": "n"})])
    assert log.end_positions() == {0: 0, 1: 0, 2: 0, 3: 0}
    assert log.append([event(2)]) == [(2, 0)]


def test_timestamps_never_go_back_even_when_the_clock_does(tmp_path):
    clock = Clock(5_000.0)
    log = EmbeddedLog(tmp_path / "events.db", clock=clock)
    for now, model in ((5_000.0, MODELS[0]), (1_000.0, MODELS[0]), (2_000.0, MODELS[1]), (6_000.0, MODELS[0])):
        clock.now = now
        log.append([event(1, model)])
    assert [r.timestamp for r in log.read(log.start_positions())] == [5_000.0, 5_000.0, 5_000.0, 6_000.0]


def test_retention_by_age_drops_the_oldest_and_never_reuses_an_offset(tmp_path):
    clock = Clock(0.0)
    path = tmp_path / "events.db"
    log = EmbeddedLog(path, retention_seconds=100, clock=clock)
    for _ in range(3):
        log.append([event(n) for n in range(10)])
        clock.now += 90
    assert log.start_positions()[2] == 10, "the batch of t=0 is too old at t=180, that of t=90 is not"
    assert [r.offset for r in log.read({2: 0})] == list(range(10, 30)), "a position older than retention gives what is left"
    clock.now = 10_000.0
    assert log.append([event(99, MODELS[1])]) == [(1, 0)]
    assert log.start_positions() == {0: 0, 1: 0, 2: 30, 3: 0}
    assert log.end_positions() == {0: 0, 1: 1, 2: 30, 3: 0}
    log.close()
    assert EmbeddedLog(path, clock=clock).append([event(100)]) == [(2, 30)]


def test_retention_by_bytes_keeps_the_newest_of_all_partitions(tmp_path):
    clock = Clock()
    log = EmbeddedLog(tmp_path / "events.db", retention_bytes=100_000, clock=clock)
    for number in range(100):
        clock.now += 1
        log.append([event(number, MODELS[number % 2], bytes(9_000))])
    kept = [r.event.id for r in log.read(log.start_positions())]
    assert kept == [f"id-{n}" for n in range(90, 100)]
    assert (tmp_path / "events.db").stat().st_size < 400_000, "pages that became free are used again"


def test_retention_works_in_bounded_steps_and_catches_up(tmp_path):
    clock = Clock(0.0)
    log = EmbeddedLog(tmp_path / "events.db", retention_seconds=100, clock=clock)
    log.append([event(n, body=b"") for n in range(5_000)])
    clock.now = 1_000.0
    starts = []
    for _ in range(3):
        log.append([event(n, MODELS[1], b"") for n in range(500)])
        starts.append(log.start_positions()[2])
    assert starts == [2_000, 4_000, 5_000]


def test_wait_for_returns_as_soon_as_another_connection_appends(tmp_path):
    path = tmp_path / "events.db"
    log = EmbeddedLog(path)
    ends = log.end_positions()
    assert log.wait_for(ends, 0.05) is False
    timer = threading.Timer(0.1, lambda: EmbeddedLog(path).append([event(1)]))
    began = time.monotonic()
    timer.start()
    assert log.wait_for(ends, 10) is True
    assert time.monotonic() - began < 5
    timer.join()
    assert log.wait_for({2: 0}, 0) is True
    assert log.wait_for({3: 0}, 0) is False


def test_opening_waits_for_another_process_that_is_just_making_the_file(tmp_path):
    path = tmp_path / "events.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # SQLite does not wait by itself here: going to WAL mode fails at once
    timer = threading.Timer(0.2, lambda: other.execute("ROLLBACK"))
    timer.start()
    assert EmbeddedLog(path).append([event(1)]) == [(2, 0)]
    timer.join()
    other.close()


APPEND = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from test_embedded_log import MODELS, event
from inference.log.embedded import EmbeddedLog
log = EmbeddedLog(Path(sys.argv[1]), busy_timeout=30)
worker, batches = int(sys.argv[2]), int(sys.argv[3])
for batch in range(batches):
    events = [event(worker * 1_000_000 + batch * 10 + n, MODELS[n % 5]) for n in range(10)]
    places = log.append(events)
    print(" ".join(f"{p}:{o}:{e.id}" for (p, o), e in zip(places, events)), flush=True)
"""


def appender(path: Path, worker: int, batches: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPEND, str(path), str(worker), str(batches), str(Path(__file__).parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_processes_and_threads_that_append_at_once_lose_and_double_nothing(tmp_path):
    path = tmp_path / "events.db"  # not made before: they race for that, too
    processes = [appender(path, worker, 40) for worker in range(3)]
    log = EmbeddedLog(path, busy_timeout=30)
    threads = [
        threading.Thread(target=lambda w=worker: [log.append([event(w * 1_000_000 + n)]) for n in range(50)]) for worker in range(3, 6)
    ]
    for thread in threads:
        thread.start()
    told = [token.split(":") for process in processes for token in process.communicate(timeout=60)[0].split()]
    for thread in threads:
        thread.join()
    assert [process.returncode for process in processes] == [0, 0, 0]
    found = everything(log)
    assert sum(map(len, found.values())) == 3 * 40 * 10 + 3 * 50
    for rows in found.values():
        assert [offset for offset, _ in rows] == list(range(len(rows)))
        for worker in range(6):
            mine = [int(one.id[3:]) for _, one in rows if int(one.id[3:]) // 1_000_000 == worker]
            assert mine == sorted(set(mine)), "each writer's events stand in the order in which it wrote them"
    assert len(told) == 1200
    for partition, offset, identity in told:
        assert found[int(partition)][int(offset)][1].id == identity


def test_a_killed_appender_leaves_whole_batches_and_all_that_it_was_told(tmp_path):
    path = tmp_path / "events.db"
    for round_ in range(3):
        process = appender(path, round_, 100_000)
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(20 + 15 * round_)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read().splitlines(keepends=True)
        process.wait()
        acknowledged = [token.split(":")[2] for line in told if line.endswith("\n") for token in line.split()]
        ids = [one.id for rows in everything(EmbeddedLog(path)).values() for _, one in rows]
        mine = [identity for identity in ids if int(identity[3:]) // 1_000_000 == round_]
        assert len(mine) == len(set(mine))
        assert len(mine) % 10 == 0
        assert set(acknowledged) <= set(mine)
        assert len(mine) - len(acknowledged) in (0, 10), "at most the batch whose answer was cut off"


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_embedded_log import event
from inference.errors import LogUnavailable
from inference.log.embedded import EmbeddedLog
log = EmbeddedLog(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
acknowledged = 0
try:
    for n in range(1000):
        log.append([event(n, body=bytes(5_000))])
        acknowledged += 1
except LogUnavailable as error:
    print(error)
assert 5 < acknowledged < 200, acknowledged
assert [r.event.id for r in log.read({2: 0})] == [f"id-{n}" for n in range(acknowledged)]
try:
    log.append([event(0, body=bytes(500_000))])
    raise SystemExit("appended to a full disk")
except LogUnavailable:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert log.append([event(0)]) == [(2, acknowledged)], "there is room again: it goes on where it stopped"
"""


def test_a_disk_without_room_is_said_and_loses_nothing_that_was_acknowledged(tmp_path):
    done = in_subprocess(FULL_DISK, tmp_path / "events.db", Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "events.db") in done.stdout
    assert "no room; check its space, quota" in done.stdout


def test_a_full_database_is_log_unavailable_and_says_what_to_do(tmp_path):
    log = EmbeddedLog(tmp_path / "events.db")
    log._connection.execute("PRAGMA max_page_count=20")
    with pytest.raises(LogUnavailable, match="disk is full; free some space, or lower the log's retention"):
        log.append([event(n, body=bytes(10_000)) for n in range(50)])
    log._connection.execute("PRAGMA max_page_count=100000")
    assert log.append([event(1)]) == [(2, 0)]


def test_a_locked_log_is_unavailable_and_says_so_in_time(tmp_path):
    path = tmp_path / "events.db"
    log = EmbeddedLog(path, busy_timeout=0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogUnavailable, match=r"events\.db: another process held it for over 0\.1 s"):
        log.append([event(1)])
    assert log.read(log.start_positions()) == [], "reading goes on"
    other.execute("ROLLBACK")
    assert log.append([event(1)]) == [(2, 0)]
    other.close()


UNWRITABLE = """
import sys
from pathlib import Path
import os
from inference.errors import DriftloopError
from inference.log.embedded import EmbeddedLog
from inference.event import Event
if os.geteuid() == 0:
    os.setuid(65534)  # root may write anywhere
try:
    EmbeddedLog(Path(sys.argv[1])).append([Event("i", "s", "t")])
except DriftloopError as error:
    print(type(error).__name__, error)
"""


def test_an_unwritable_folder_or_file_is_named(tmp_path):
    base = Path(tempfile.mkdtemp())  # pytest's own folder can't be entered by another user
    try:
        EmbeddedLog(base / "mine.db").close()
        (base / "mine.db").chmod(0o444)
        base.chmod(0o555)
        for path, words in (
            (base / "new.db", "can't be opened; the folder must be there and writable"),
            (base / "deep" / "new.db", "its folder can't be made (Permission denied)"),
            (base / "mine.db", "it can't be written; give this user write permission"),
        ):
            done = in_subprocess(UNWRITABLE, path)
            assert done.stdout.startswith(f"LogUnavailable event log {path}: "), done
            assert words in done.stdout
    finally:
        base.chmod(0o755)
        for child in base.iterdir():
            child.unlink()
        base.rmdir()


def test_a_path_through_a_file_is_unavailable(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LogUnavailable, match="its folder can't be made"):
        EmbeddedLog(tmp_path / "file" / "events.db")


def test_what_is_no_log_is_corrupt_and_left_as_it_was(tmp_path):
    with pytest.raises(LogCorrupt, match="is a folder; give the path of a file"):
        EmbeddedLog(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("these are my notes, no database at all\n" * 50)
    with pytest.raises(LogCorrupt, match="damaged or no event log"):
        EmbeddedLog(text)
    foreign = tmp_path / "other.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE customers (name TEXT)")
    connection.commit()
    connection.close()
    before = text.read_bytes(), foreign.read_bytes()
    with pytest.raises(LogCorrupt, match=r"a database of something else \(customers\)"):
        EmbeddedLog(foreign)
    assert (text.read_bytes(), foreign.read_bytes()) == before


def test_another_format_is_refused_with_both_numbers(tmp_path):
    path = tmp_path / "events.db"
    log = EmbeddedLog(path)
    log._connection.execute("UPDATE driftloop_meta SET value = 2 WHERE name = 'format'")
    log.close()
    with pytest.raises(LogCorrupt, match="has format 2; this driftloop reads format 1"):
        EmbeddedLog(path)


def test_a_damaged_record_is_named_by_its_place(tmp_path):
    log = EmbeddedLog(tmp_path / "events.db")
    log.append([event(1), event(2)])
    log._connection.execute("UPDATE records SET headers = x'5b5d' WHERE place & 1")
    with pytest.raises(LogCorrupt, match="partition 2, offset 1 is damaged"):
        log.read({2: 0})


def test_positions_of_another_log_are_refused_rather_than_silently_waited_for(tmp_path):
    log = EmbeddedLog(tmp_path / "events.db")
    log.append([event(1)])
    assert log.read({2: 1}) == []
    with pytest.raises(LogCorrupt, match="position 2 of partition 2 lies beyond its end 1"):
        log.read({2: 2})
    with pytest.raises(LogCorrupt, match="partitions 0 to 3; a position names partition 4"):
        log.read({4: 0})


def test_a_closed_or_forked_log_says_so(tmp_path):
    log = EmbeddedLog(tmp_path / "events.db")
    log._process -= 1
    with pytest.raises(LogUnavailable, match="was opened by process"):
        log.end_positions()
    log._process += 1
    log.close()
    log.close()
    with pytest.raises(LogUnavailable, match="is closed"):
        log.append([event(1)])


def test_senseless_options_are_refused(tmp_path):
    for options in ({"partitions": 0}, {"retention_seconds": 0}, {"retention_bytes": -1}):
        with pytest.raises(SettingsError):
            EmbeddedLog(tmp_path / "events.db", **options)
    assert list(tmp_path.iterdir()) == []


def test_dead_letters_are_bounded_counted_and_free_of_secrets(tmp_path):
    clock = Clock(50.0)
    log = EmbeddedLog(tmp_path / "events.db", max_dead_letters=3, clock=clock)
    secrets = [("Authorization", "Bearer s3cret"), ("cookie", "s3cret"), ("Proxy-Authorization", "s3cret"), ("X-Api-Key", "s3cret")]
    for number in range(5):
        log.set_aside(
            "bad_json" if number % 2 else "missing_id",
            f"m{number}\udcff",
            [*secrets, ("Ce-Id", f"{number}"), ("Big", "x" * 10_000)],
            bytes(100_000),
        )
    letters = log.dead_letters()
    assert [letter.message for letter in letters] == ["m2?", "m3?", "m4?"]
    assert log.dead_letter_counts() == {"bad_json": 2, "missing_id": 3}
    last = letters[-1]
    assert (last.timestamp, last.reason, last.length, len(last.body)) == (50.0, "missing_id", 100_000, 65_536)
    assert last.headers == (("Ce-Id", "4"), ("Big", "x" * 4_096))
    log.close()
    assert b"s3cret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert EmbeddedLog(tmp_path / "events.db").dead_letters() == letters
