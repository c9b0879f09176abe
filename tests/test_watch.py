"""The watcher: what it said live a replay says again, and a kill starts nothing twice and loses nothing."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import pytest
from sklearn.dummy import DummyClassifier

from inference.errors import LogUnavailable, ServiceError, SnapshotError
from inference.log import open_log
from inference.log.embedded_feed import EmbeddedFeed
from inference.versions import Feature, Repository, Schema, Version
from streaming.actions.outbox import Done, Item, Outbox
from streaming.actions.worker import Worker
from streaming.assemble import alone, build_fleet, open_replay
from streaming.core.verdict import as_object
from streaming.dispatch import Dispatch
from streaming.journal import Journal
from streaming.reader import everything
from streaming.settings import load_settings
from streaming.snapshots import Snapshot, SnapshotStore, encode
from streaming.testing import Receiver, finished, poll_until, prediction, promotion, records
from streaming.watch import Watch

MODEL = "default/iris"
SETTINGS = """\
log: log.db
repository: models
state: state
models:
  default/iris:
    window: {size: 50, slide: 10}
    limits:
      - {kind: evidently, test: ks, threshold: 1e-6}
      - {kind: detector, detector: {kind: adwin}}
    retraining: null
"""


@pytest.fixture
def folder(tmp_path):
    """A working folder: configuration, one version in the repository, an empty log."""
    (tmp_path / "driftloop.yaml").write_text(SETTINGS)
    write_version(tmp_path, "1", 0.0)
    return tmp_path


def write_version(folder, version, centre):
    rng = np.random.default_rng(0)
    table = pyarrow.table({"x": rng.normal(centre, 1.0, 400), "prediction": rng.integers(0, 2, 400).astype(float)})
    pyarrow.parquet.write_table(table, folder / "reference.parquet")
    joblib.dump(DummyClassifier().fit([[0.0]], [0]), folder / "model.joblib")
    schema = Schema((Feature("x", "numeric"),), "numeric", "y")
    Repository(folder / "models").write(
        Version(MODEL, version, Path(), schema), model_file=folder / "model.joblib", reference_file=folder / "reference.parquet"
    )


def traffic(count, centre, *, first=0, seed=1):
    rng = np.random.default_rng(seed + first)
    return [event for n in range(count) for event in prediction(MODEL, f"p{first + n}", [[float(rng.normal(centre, 1.0))]], [n % 2])]


def write(folder, events):
    log = open_log(str(folder / "log.db"))
    log.append(events)
    log.close()


class Watching:
    """A watcher's parts on the embedded log, in this process; `run` ends when it has read everything, as on SIGTERM."""

    def __init__(self, folder, settings=None, *, handlers=None, every=30.0, held_until=None):
        self.settings = settings or load_settings(folder / "driftloop.yaml")
        self.log = open_log(self.settings.log)
        self.journal = Journal(self.settings.state)
        self.outbox = Outbox(lambda event: self.log.append([event]))
        self.stop = threading.Event()
        self.store = SnapshotStore(self.settings.watch.snapshots, "log")
        self.dispatch = Dispatch(self.settings, self.outbox, self.journal)
        self.worker = Worker(self.outbox, handlers or {}, poll=0.01)
        self.told = []
        self.watch = Watch(
            build_fleet(self.settings),
            self.dispatch,
            self.outbox,
            self.store,
            self.log,
            log_identity="log",
            every=every,
            status=self._status,
            stop=self.stop,
        )

    def _status(self, status):
        self.told.append(status)
        self.journal.status(status)

    def feed(self):
        """Stops the watch at the first empty batch."""
        inner, stop = EmbeddedFeed(self.log, self.watch), self.stop

        class Ending:
            def __getattr__(self, name):
                return getattr(inner, name)

            def poll(self, limit, timeout):
                records = inner.poll(limit, 0.0)
                if not records:
                    stop.set()
                return records

        return Ending()

    def run(self):
        self.watch.run(self.feed())
        self.worker.run_due()
        self.journal.close()
        return self.said()

    def said(self):
        return [orjson.loads(line) for line in (self.settings.state / "outcomes.jsonl").read_bytes().splitlines()]


def snapshots(folder):
    return sorted((folder / "state" / "snapshots").rglob("*.snapshot"))


def test_a_replay_says_what_the_live_consumer_said(folder):
    write_version(folder, "2", 8.0)
    write(
        folder,
        [
            promotion(MODEL, "1"),
            *traffic(120, 0.0),
            *traffic(120, 8.0, first=200),
            promotion(MODEL, "2", "1"),
            *traffic(90, 8.0, first=400),
        ],
    )
    live = Watching(folder).run()
    settings = load_settings(folder / "driftloop.yaml")
    replayed = [orjson.loads(orjson.dumps(as_object(outcome))) for outcome in open_replay(settings, None)]
    assert live == replayed
    assert {outcome["outcome"] for outcome in live} == {"verdict", "decision", "notice"}
    assert orjson.loads((folder / "state" / "status.json").read_bytes())["models"][MODEL]["version"] == "2"


@pytest.mark.parametrize("keep_snapshots", [True, False])
def test_a_second_start_says_nothing_new_and_does_nothing_twice(folder, keep_snapshots):
    (folder / "driftloop.yaml").write_text(SETTINGS + "alerts:\n  webhook: {url: 'http://127.0.0.1:1/'}\n")
    write(folder, [promotion(MODEL, "1"), *traffic(60, 0.0), *traffic(120, 8.0, first=200)])
    performed = []
    handlers = {kind: lambda entry: performed.append(entry.key) or Done() for kind in ("webhook", "report")}
    first = Watching(folder, handlers=handlers)
    # As long as it owns the partition: the entries are performed, and the log told, before it is let go.
    first.watch.revoked = lambda partitions: (first.worker.run_due(), Watch.revoked(first.watch, partitions))
    said = first.run()
    assert [key.partition(":")[2] for key in performed] == ["webhook", "report"]
    if not keep_snapshots:
        shutil.rmtree(folder / "state" / "snapshots")
    second = Watching(folder, handlers=handlers)
    second.watch.revoked = lambda partitions: (second.worker.run_due(), Watch.revoked(second.watch, partitions))
    assert second.run() == said
    assert second.told[-1]["records"] == (2 if keep_snapshots else 363)
    assert len(performed) == 2


def test_what_is_not_done_yet_stands_in_the_snapshot(folder):
    (folder / "driftloop.yaml").write_text(SETTINGS + "alerts:\n  webhook: {url: 'http://127.0.0.1:1/'}\nreports: false\n")
    write(folder, [promotion(MODEL, "1"), *traffic(60, 0.0), *traffic(120, 8.0, first=200)])
    Watching(folder).run()
    second, seen = Watching(folder), []
    second.watch.revoked = lambda partitions: (seen.extend(second.outbox.entries()), Watch.revoked(second.watch, partitions))
    second.run()
    assert [entry.kind for entry in seen] == ["webhook"]
    assert second.told[-1]["records"] == 0


def test_what_happened_long_ago_is_recorded_and_not_acted_upon(folder):
    (folder / "driftloop.yaml").write_text(SETTINGS + "max_decision_age: 1ms\n")
    write(folder, [promotion(MODEL, "1"), *traffic(60, 0.0), *traffic(120, 8.0, first=200)])
    time.sleep(0.01)
    watching = Watching(folder)
    said = watching.run()
    assert any(outcome["outcome"] == "decision" and outcome["action"] == "alert" for outcome in said)
    assert watching.outbox.counts() == {}
    assert not (folder / "state" / "incidents").exists()


def test_nothing_is_performed_before_the_log_was_read_to_where_it_ended(folder):
    """What a decision asks for may have been done by whoever had the partition before: the log tells so further on."""
    (folder / "driftloop.yaml").write_text(SETTINGS + "alerts:\n  webhook: {url: 'http://127.0.0.1:1/'}\nreports: false\n")
    write(folder, [promotion(MODEL, "1"), *traffic(60, 0.0), *traffic(120, 8.0, first=200), *traffic(1500, 8.0, first=400)])
    watching, seen = Watching(folder), []

    def look(records):
        Watch._take(watching.watch, records)
        seen.append((len(watching.outbox.entries()), watching.outbox.take(time.time(), "webhook") is not None))

    watching.watch._take = look
    watching.run()
    assert seen == [(1, False), (1, True), (1, False)]


def test_what_a_snapshot_left_to_do_waits_for_what_the_log_may_tell_of_it(folder):
    (folder / "driftloop.yaml").write_text(SETTINGS + "alerts:\n  webhook: {url: 'http://127.0.0.1:1/'}\nreports: false\n")
    write(folder, [promotion(MODEL, "1"), *traffic(60, 0.0), *traffic(120, 8.0, first=200)])
    Watching(folder).run()
    write(folder, traffic(10, 8.0, first=800))
    watching, seen = Watching(folder), []

    def look(records):
        seen.append((len(watching.outbox.entries()), watching.outbox.take(time.time(), "webhook") is not None))
        Watch._take(watching.watch, records)

    watching.watch._take = look
    watching.run()
    assert seen == [(1, False), (1, True)]


def test_the_end_of_a_run_that_was_decided_on_before_the_snapshot_is_told(folder):
    (folder / "driftloop.yaml").write_text(
        SETTINGS.replace("retraining: null", "retraining: {}") + "alerts:\n  slack: {webhook: 'http://127.0.0.1:1/'}\n"
    )
    write(folder, [promotion(MODEL, "1"), *traffic(60, 0.0), *traffic(120, 8.0, first=200)])
    (run_id,) = (one["run_id"] for one in Watching(folder).run() if one["outcome"] == "decision" and one["run_id"])
    write(folder, [finished(MODEL, run_id)])
    watching, seen = Watching(folder), []
    watching.watch.revoked = lambda partitions: (seen.extend(watching.outbox.entries("slack")), Watch.revoked(watching.watch, partitions))
    watching.run()
    assert len(seen) == 2


def test_a_partition_goes_only_when_what_is_being_done_about_it_is_done(folder):
    (folder / "driftloop.yaml").write_text(SETTINGS + "alerts:\n  webhook: {url: 'http://127.0.0.1:1/'}\nreports: false\n")
    write(folder, [promotion(MODEL, "1"), *traffic(60, 0.0), *traffic(120, 8.0, first=200)])
    watching = Watching(folder)
    feed = EmbeddedFeed(watching.log, watching.watch)
    watching.watch._take(feed.poll(1000, 0.0))
    entry = watching.outbox.take(time.time(), "webhook")
    going = threading.Thread(target=feed.close)
    going.start()
    going.join(0.3)
    assert going.is_alive()
    assert snapshots(folder) == []
    watching.outbox.done(entry)
    going.join(5)
    assert not going.is_alive()
    partition = watching.log.partition_of(MODEL)
    assert watching.store.load(partition).body["outbox"] == []


def test_where_the_last_offsets_hold_no_record_it_acts_all_the_same(folder, monkeypatch):
    monkeypatch.setattr("streaming.watch._NOTHING_COMES", 0.2)
    write(folder, [promotion(MODEL, "1"), *traffic(5, 0.0)])
    watching = Watching(folder)
    ends = watching.log.end_positions()
    watching.log.end_positions = lambda: {number: end + 2 for number, end in ends.items()}
    feed = EmbeddedFeed(watching.log, watching.watch)
    thread = threading.Thread(target=watching.watch.run, args=(feed,))
    thread.start()
    assert poll_until(lambda: watching.told and watching.told[-1]["records"] == 11)
    partition = watching.log.partition_of(MODEL)
    watching.outbox.put_all([Item("k", "slack", {})], partition=partition, model=MODEL, now=0.0)
    assert watching.outbox.take(1.0, "slack") is None
    taken = []
    assert poll_until(lambda: taken.append(watching.outbox.take(1.0, "slack")) or taken[-1], timeout=3)
    watching.outbox.done(taken[-1])
    watching.stop.set()
    thread.join()


class Troubled:
    """A feed whose first polls fail."""

    def __init__(self, feed, errors):
        self._feed, self._errors = feed, list(errors)

    def __getattr__(self, name):
        return getattr(self._feed, name)

    def poll(self, limit, timeout):
        if self._errors:
            raise self._errors.pop(0)
        return self._feed.poll(limit, timeout)


def test_a_log_and_a_store_that_are_away_are_waited_for_and_told_once(folder, caplog):
    write(folder, [promotion(MODEL, "1"), *traffic(70, 0.0)])
    watching = Watching(folder)
    expected = len([*open_replay(watching.settings, None)])
    watching.watch.run(Troubled(watching.feed(), [LogUnavailable("away"), SnapshotError("away"), LogUnavailable("away")]))
    assert len(watching.said()) == expected
    assert [record.message for record in caplog.records if "cannot read on" in record.message] == ["cannot read on, trying again: away"]
    assert "reading on" in caplog.text


def test_a_store_that_is_away_at_the_start_keeps_it_from_reading_without_its_memory(folder):
    write(folder, [promotion(MODEL, "1"), *traffic(70, 0.0)])
    Watching(folder).run()
    write(folder, traffic(30, 0.0, first=500))
    watching, load, tries = Watching(folder), SnapshotStore.load, []

    def away(partition):
        tries.append(partition)
        if len(tries) < 4:
            raise SnapshotError("away")
        return load(watching.store, partition)

    watching.store.load = away
    watching.run()
    assert len(tries) >= 4
    assert watching.told[-1]["records"] == 60


def test_a_snapshot_of_a_log_that_is_no_more_is_deleted_and_the_new_log_read_from_its_start(folder, caplog):
    write(folder, [promotion(MODEL, "1"), *traffic(70, 0.0)])
    Watching(folder).run()
    for path in folder.glob("log.db*"):
        path.unlink()
    write(folder, [promotion(MODEL, "1"), *traffic(20, 0.0)])
    old = snapshots(folder)
    watching = Watching(folder)
    watching.run()
    assert watching.told[-1]["records"] == 41
    assert "of a log that is no more" in caplog.text
    assert not set(old) & set(snapshots(folder))


@pytest.mark.parametrize("body", [{}, {"fleet": {}, "dispatch": {}, "outbox": []}, {"fleet": 7, "dispatch": {"x": 1}, "outbox": None}])
def test_a_snapshot_it_does_not_understand_is_told_and_the_log_read_from_its_start(folder, caplog, body):
    write(folder, [promotion(MODEL, "1"), *traffic(70, 0.0)])
    watching = Watching(folder)
    partition = watching.log.partition_of(MODEL)
    watching.store.save(partition, 50, encode(Snapshot(partition, 50, body), "log"))
    expected = [orjson.loads(orjson.dumps(as_object(outcome))) for outcome in open_replay(watching.settings, None)]
    assert watching.run() == expected
    assert "its snapshot is of no use" in caplog.text


def forget_before(log, partition, offset):
    """As the retention of an embedded log does."""
    log._connection.execute("DELETE FROM records WHERE place >= ? AND place < ?", (partition << 48, partition << 48 | offset))
    log._connection.execute("UPDATE partitions SET start = ? WHERE partition = ?", (offset, partition))


def test_records_that_retention_took_are_told_and_the_rest_is_read(folder, caplog):
    write(folder, [promotion(MODEL, "1"), *traffic(30, 0.0)])
    Watching(folder).run()
    write(folder, traffic(30, 0.0, first=500))
    log = open_log(str(folder / "log.db"))
    partition = log.partition_of(MODEL)
    forget_before(log, partition, log.end_positions()[partition] - 10)
    log.close()
    watching = Watching(folder)
    watching.run()
    assert watching.told[-1]["records"] == 10
    assert "no longer has offsets 61 to 110" in caplog.text


def test_an_error_of_ours_in_the_middle_of_a_batch_saves_nothing(folder, monkeypatch):
    monkeypatch.setattr("streaming.watch.BATCH", 110)
    write(folder, [promotion(MODEL, "1"), *traffic(70, 0.0)])
    watching = Watching(folder)
    watching.watch._dispatch = Breaking(watching.dispatch, after=3)
    with pytest.raises(ZeroDivisionError):
        watching.run()
    assert snapshots(folder) == []
    again = Watching(folder)
    expected = [orjson.loads(orjson.dumps(as_object(outcome))) for outcome in open_replay(again.settings, None)]
    assert again.run() == expected


class Breaking:
    def __init__(self, dispatch, after):
        self._dispatch, self._left = dispatch, after

    def __getattr__(self, name):
        return getattr(self._dispatch, name)

    def __call__(self, outcome):
        self._left -= 1
        if self._left < 0:
            raise ZeroDivisionError
        self._dispatch(outcome)


def test_snapshots_are_taken_as_it_reads_and_a_full_disk_costs_snapshots_only(folder, caplog):
    (folder / "state").mkdir()
    (folder / "state" / "snapshots").write_text("in the way")
    write(folder, [promotion(MODEL, "1"), *traffic(70, 0.0)])
    watching = Watching(folder, every=0.05)
    thread = threading.Thread(target=watching.watch.run, args=(EmbeddedFeed(watching.log, watching.watch),))
    watching.store.load = lambda partition: None
    thread.start()
    assert poll_until(lambda: "no snapshot can be written" in caplog.text)
    (folder / "state" / "snapshots").unlink()
    write(folder, traffic(30, 0.0, first=500))
    assert poll_until(lambda: snapshots(folder))
    assert poll_until(lambda: "snapshots are written again" in caplog.text)
    watching.stop.set()
    thread.join()
    assert caplog.text.count("no snapshot can be written") == 1
    assert len(watching.said()) > 3


def test_one_state_folder_is_for_one_watcher(folder):
    with alone(folder / "state"), pytest.raises(ServiceError, match=r"a watcher is at work in .*state"), alone(folder / "state"):
        pass
    with alone(folder / "state"):
        pass


def test_changed_limits_start_the_windows_anew_and_say_so(folder, caplog):
    write(folder, [promotion(MODEL, "1"), *traffic(70, 0.0)])
    Watching(folder).run()
    (folder / "driftloop.yaml").write_text(SETTINGS.replace("size: 50", "size: 60"))
    write(folder, traffic(70, 0.0, first=500))
    said = Watching(folder).run()
    assert [outcome["kind"] for outcome in said if outcome["outcome"] == "notice"] == ["promoted", "restarted"]
    assert "its windows start anew" in caplog.text
    assert [outcome["predictions"] for outcome in said if outcome["outcome"] == "verdict"] == [50, 60, 70, 60, 70]


def test_what_is_new_on_one_partition_hides_nothing_that_is_old_on_another():
    class TwoPartitions:
        """Gives one partition's records at a time, as a Kafka client does, the busy one's first."""

        def __init__(self):
            self.ends = {0: 2, 1: 2}

        def start_positions(self):
            return {0: 0, 1: 0}

        def end_positions(self):
            return dict(self.ends)

        def read(self, positions, limit=1000):
            for partition, offset in positions.items():
                if offset < self.ends[partition]:
                    self.ends[0] += 1
                    return records(prediction(MODEL, f"{partition}-{offset}", [[1.0]], [1])[:1], partition=partition, first=offset)
            return []

    read = [(r.partition, r.offset) for batch in everything(TwoPartitions()) for r in batch]
    assert read == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_state_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match=r"state folder .* cannot be written"):
        Journal(tmp_path / "file")


def start_watcher(folder):
    with (folder / "watch.log").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "streaming.cli", "watch", "--config", str(folder / "driftloop.yaml")], stdout=output, stderr=output
        )


@pytest.mark.slow
def test_killed_anywhere_it_says_what_an_undisturbed_watcher_says_and_alerts_once(folder):
    with Receiver() as receiver:
        (folder / "driftloop.yaml").write_text(SETTINGS + f"alerts:\n  webhook: {{url: '{receiver.url('/hook')}'}}\n")
        write(folder, [promotion(MODEL, "1")])
        events = [*traffic(80, 0.0), *traffic(400, 8.0, first=200)]
        writer = threading.Thread(
            target=lambda: [(write(folder, events[at : at + 20]), time.sleep(0.1)) for at in range(0, len(events), 20)]
        )
        watcher = start_watcher(folder)
        writer.start()
        rng = np.random.default_rng(5)
        for _ in range(3):
            time.sleep(float(rng.uniform(0.5, 3.0)))
            os.kill(watcher.pid, signal.SIGKILL)
            watcher.wait()
            start_of_last = (folder / "watch.log").stat().st_size
            watcher = start_watcher(folder)
        writer.join()
        assert receiver.wait_for(1, timeout=60)
        undisturbed = load_settings(folder / "driftloop.yaml")
        expected = [orjson.loads(orjson.dumps(as_object(outcome))) for outcome in open_replay(undisturbed, None)]
        said = []
        end = time.monotonic() + 60
        while len(said) < len(expected) and time.monotonic() < end:
            time.sleep(0.2)
            said = [orjson.loads(line) for line in (folder / "state" / "outcomes.jsonl").read_bytes().splitlines()]
        assert poll_until(lambda: b"are read from" in (folder / "watch.log").read_bytes()[start_of_last:], timeout=30)
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(timeout=20) == 0
        assert said == expected
        assert any(outcome["outcome"] == "decision" and outcome["action"] == "alert" for outcome in expected)
        # At least once, and always under the same id: a receiver that drops what it knows is told once.
        assert {request.headers["ce-id"] for request in receiver.requests} == {
            outcome["id"] for outcome in expected if outcome["outcome"] == "decision" and outcome["action"] == "alert"
        }
