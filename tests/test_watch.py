"""The watcher: what it said live a replay says again, and a kill starts nothing twice and loses nothing."""

import os
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

from inference.errors import ActionError, LogUnavailable, ServiceError
from inference.log import open_log
from inference.versions import Feature, Repository, Schema, Version
from streaming.actions.outbox import Outbox
from streaming.assemble import build_fleet, open_replay
from streaming.core.verdict import as_object
from streaming.dispatch import Dispatch
from streaming.journal import Journal
from streaming.reader import everything, following
from streaming.settings import load_settings
from streaming.testing import Receiver, prediction, promotion, records
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


def watch_once(folder, settings=None):
    """Everything on the log through the live consumer's own parts; the outcomes as JSON objects."""
    settings = settings or load_settings(folder / "driftloop.yaml")
    log, outbox, journal = open_log(settings.log), Outbox(settings.state / "outbox.db"), Journal(settings.state)
    said = []
    dispatch = Dispatch(settings, outbox, journal)

    def perform(outcome):
        dispatch(outcome)
        said.append(orjson.loads(orjson.dumps(as_object(outcome))))

    Watch(build_fleet(settings), perform, journal.status, threading.Event()).run(everything(log))
    journal.close()
    return said, outbox


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
    live, _ = watch_once(folder)
    settings = load_settings(folder / "driftloop.yaml")
    replayed = [orjson.loads(orjson.dumps(as_object(outcome))) for outcome in open_replay(settings, None)]
    assert live == replayed
    assert [orjson.loads(line) for line in (folder / "state" / "outcomes.jsonl").read_bytes().splitlines()] == live
    assert {outcome["outcome"] for outcome in live} == {"verdict", "decision", "notice"}
    assert orjson.loads((folder / "state" / "status.json").read_bytes())["models"][MODEL]["version"] == "2"


def test_a_second_start_says_the_same_and_puts_nothing_twice(folder):
    (folder / "driftloop.yaml").write_text(SETTINGS + "alerts:\n  webhook: {url: 'http://127.0.0.1:1/'}\n")
    write(folder, [promotion(MODEL, "1"), *traffic(60, 0.0), *traffic(120, 8.0, first=200)])
    first, outbox = watch_once(folder)
    entries = outbox.entries()
    second, outbox = watch_once(folder)
    assert first == second
    assert outbox.entries() == entries
    assert [entry.kind for entry in entries] == ["webhook", "report"]


def test_what_happened_long_ago_is_recorded_and_not_acted_upon(folder):
    (folder / "driftloop.yaml").write_text(SETTINGS + "max_decision_age: 0.001s\n".replace("0.001s", "1ms"))
    write(folder, [promotion(MODEL, "1"), *traffic(60, 0.0), *traffic(120, 8.0, first=200)])
    time.sleep(0.01)
    said, outbox = watch_once(folder)
    assert any(outcome["outcome"] == "decision" and outcome["action"] == "alert" for outcome in said)
    assert outbox.entries() == []
    assert not (folder / "state" / "incidents").exists()


def test_an_outcome_that_cannot_be_made_durable_is_offered_again_and_nothing_overtakes_it(folder):
    write(folder, [promotion(MODEL, "1"), *traffic(70, 0.0)])
    settings = load_settings(folder / "driftloop.yaml")
    offered = []

    def perform(outcome):
        offered.append(outcome.id)
        if len(offered) < 3:
            raise ActionError("the disk is full")

    Watch(build_fleet(settings), perform, lambda status: None, threading.Event()).run(everything(open_log(settings.log)))
    assert offered[0] == offered[1] == offered[2]
    assert len(set(offered)) == len(offered) - 2 == 4


def test_a_log_that_goes_away_is_waited_for():
    class Flaky:
        def __init__(self):
            self.calls = 0

        def start_positions(self):
            return {0: 0}

        def read(self, positions, limit=1000):
            self.calls += 1
            if self.calls in (1, 3):
                raise LogUnavailable("away")
            return []

        def wait_for(self, positions, timeout):
            return False

    stop, flaky = threading.Event(), Flaky()
    batches = following(flaky, stop)
    assert next(batches) == []
    assert next(batches) == []
    assert flaky.calls == 4
    stop.set()
    assert list(batches) == []


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
            watcher = start_watcher(folder)
        writer.join()
        assert receiver.wait_for(1, timeout=60)
        expected, _ = watch_once_apart(folder)
        said = []
        end = time.monotonic() + 60
        while len(said) < len(expected) and time.monotonic() < end:
            time.sleep(0.2)
            said = [orjson.loads(line) for line in (folder / "state" / "outcomes.jsonl").read_bytes().splitlines()]
        watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(timeout=20) == 0
        assert said == expected
        assert any(outcome["outcome"] == "decision" and outcome["action"] == "alert" for outcome in expected)
        # At least once, and always under the same id: a receiver that drops what it knows is told once.
        assert {request.headers["ce-id"] for request in receiver.requests} == {
            outcome["id"] for outcome in expected if outcome["outcome"] == "decision" and outcome["action"] == "alert"
        }


def watch_once_apart(folder):
    """The undisturbed run, with a state folder of its own."""
    settings = load_settings(folder / "driftloop.yaml")
    return watch_once(folder, settings.model_copy(update={"state": folder / "undisturbed"}))
