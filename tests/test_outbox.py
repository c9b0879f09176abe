"""The outbox and its worker: nothing twice, nothing lost, nothing blocked."""

import itertools
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from inference.errors import ActionError, ServiceError
from streaming.actions.outbox import Done, Entry, Item, Later, Outbox
from streaming.actions.webhook import Webhook
from streaming.actions.worker import Policy, Worker
from streaming.testing import Receiver, poll_until


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def outbox(tmp_path: Path):
    box = Outbox(tmp_path / "state" / "outbox.db")
    yield box
    box.close()


def test_a_known_key_is_put_once_and_keeps_its_first_payload(outbox: Outbox) -> None:
    assert outbox.put("d1:slack", "slack", {"text": "one"}, now=1.0)
    assert not outbox.put("d1:slack", "slack", {"text": "two"}, now=2.0)
    assert [entry.payload for entry in outbox.entries()] == [{"text": "one"}]


def test_a_key_stays_known_after_it_was_done(outbox: Outbox) -> None:
    outbox.put("k", "slack", {}, now=1.0)
    outbox.done("k", "sent")
    assert not outbox.put("k", "slack", {}, now=2.0)
    assert outbox.due(10.0) == []
    assert outbox.counts() == {"slack": {"done": 1}}


def test_several_items_are_put_all_or_none(outbox: Outbox) -> None:
    with pytest.raises(TypeError):
        outbox.put_all([Item("a", "slack", {}), Item("b", "slack", {"x": object()})], now=1.0)
    # Refused by SQLite itself, after the first row was written.
    with pytest.raises(UnicodeEncodeError):
        outbox.put_all([Item("a", "slack", {}), Item("\ud800", "slack", {})], now=1.0)
    assert outbox.entries() == []
    assert outbox.put_all([Item("a", "slack", {}), Item("b", "webhook", {})], now=1.0) == 2
    assert outbox.put_all([Item("b", "webhook", {}), Item("c", "webhook", {})], now=1.0) == 1
    assert [entry.key for entry in outbox.entries(kind="webhook")] == ["b", "c"]


def test_an_entry_is_due_at_its_time_and_not_before(outbox: Outbox) -> None:
    outbox.put("k", "slack", {}, now=1.0, not_before=50.0)
    assert outbox.due(49.0) == []
    assert [entry.key for entry in outbox.due(50.0)] == ["k"]


def test_a_reopened_outbox_knows_everything(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "o.db")
    first.put("k", "slack", {"n": 1}, now=1.0)
    first.retry("k", 9.0, "no route")
    first.close()
    (entry,) = Outbox(tmp_path / "o.db").entries()
    assert entry == Entry("k", "slack", {"n": 1}, "pending", 1, 9.0, 1.0, "no route", "")


def test_a_state_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match=r"file/outbox\.db.*state folder"):
        Outbox(tmp_path / "file" / "outbox.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_state_folder_is_a_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ServiceError, match="state folder"):
        Outbox(tmp_path / "outbox.db")


def test_a_file_that_is_no_outbox_or_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, but long enough to be looked at" * 50)
    with pytest.raises(ServiceError, match="not a database"):
        Outbox(tmp_path / "text.db")
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version = 7")
    newer.close()
    with pytest.raises(ServiceError, match="format 7"):
        Outbox(tmp_path / "newer.db")


def test_an_action_that_succeeds_is_done_with_its_note(outbox: Outbox) -> None:
    outbox.put("k", "slack", {"a": [1]}, now=time.time())
    seen: list[Entry] = []
    worker = Worker(outbox, {"slack": lambda entry: seen.append(entry) or Done("sent")})
    assert worker.run_due() == 1
    assert worker.run_due() == 0
    assert seen[0].payload == {"a": [1]}
    entry = outbox.get("k")
    assert entry is not None and (entry.state, entry.note) == ("done", "sent")


def test_failures_are_tried_again_ever_later_and_then_given_up_with_one_error_line(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    clock, times = Clock(), []

    def fails(entry: Entry) -> Done:
        times.append(clock.now)
        raise ActionError("the receiver is away")

    outbox.put("k", "slack", {}, now=clock.now)
    worker = Worker(
        outbox, {"slack": fails}, policies={"slack": Policy(attempts=5, first_wait=2.0, longest_wait=7.0)}, clock=clock, chance=lambda: 0.5
    )
    while (entry := outbox.get("k")) is not None and entry.state == "pending":
        clock.now = entry.next_at
        assert worker.run_due() == 1
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == pytest.approx([1.5, 3.0, 5.25, 5.25])
    assert (entry.state, entry.attempts, entry.last_error) == ("failed", 5, "the receiver is away")
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1 and "the receiver is away" in errors[0].message and "5 tries" in errors[0].message


def test_a_failure_that_another_try_cannot_help_is_final(outbox: Outbox) -> None:
    def refuses(entry: Entry) -> Done:
        raise ActionError("404", retry=False)

    outbox.put("k", "slack", {}, now=time.time())
    Worker(outbox, {"slack": refuses}).run_due()
    assert [(entry.state, entry.attempts) for entry in outbox.entries()] == [("failed", 1)]


def test_jitter_spreads_the_waits_over_the_upper_half() -> None:
    policy = Policy(first_wait=4.0, longest_wait=100.0)
    assert policy.wait(1, 0.0) == 2.0
    assert policy.wait(1, 1.0) == 4.0
    assert policy.wait(10_000, 1.0) == 100.0


def test_later_is_no_failure_and_hands_the_note_back(outbox: Outbox) -> None:
    clock, notes = Clock(), []

    def steps(entry: Entry) -> Done | Later:
        notes.append((entry.note, entry.attempts))
        if len(notes) == 2:
            raise ActionError("once")
        return Done("end") if len(notes) == 4 else Later(5.0, f"step {len(notes)}")

    outbox.put("k", "retrain", {}, now=clock.now)
    worker = Worker(outbox, {"retrain": steps}, policies={"retrain": Policy(attempts=2)}, clock=clock, chance=lambda: 1.0)
    for _ in range(4):
        worker.run_due()
        clock.now += 5.0
    assert notes == [("", 0), ("step 1", 0), ("step 1", 1), ("step 3", 0)]
    assert outbox.counts() == {"retrain": {"done": 1}}


def test_an_entry_that_waited_too_long_expires_without_being_performed(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    clock, performed = Clock(), []
    outbox.put("k", "slack", {}, now=clock.now)
    outbox.retry("k", clock.now, "connection refused")
    clock.now += 61.0
    Worker(outbox, {"slack": lambda e: performed.append(e) or Done()}, policies={"slack": Policy(max_age=60.0)}, clock=clock).run_due()
    assert performed == []
    assert [entry.state for entry in outbox.entries()] == ["expired"]
    assert "connection refused" in caplog.text


def test_an_unexpected_exception_is_that_entrys_failure_and_the_worker_goes_on(outbox: Outbox) -> None:
    def handler(entry: Entry) -> Done:
        return Done(str(1 // entry.payload["n"]))

    worker = Worker(outbox, {"slack": handler}, policies={"slack": Policy(attempts=2, first_wait=0.01)}, poll=0.01)
    outbox.put_all([Item("bad", "slack", {"n": 0}), Item("good", "slack", {"n": 1})], now=time.time())
    worker.start()
    assert worker.drain(10.0)
    assert worker.stop(5.0)
    states = {entry.key: (entry.state, entry.last_error) for entry in outbox.entries()}
    assert states == {"bad": ("failed", "ZeroDivisionError: integer division or modulo by zero"), "good": ("done", "")}


def test_a_kind_that_hangs_holds_up_no_other_and_stop_is_bounded(outbox: Outbox) -> None:
    release = threading.Event()
    worker = Worker(outbox, {"webhook": lambda e: release.wait(30.0) and Done(), "retrain": lambda e: Done("started")}, poll=0.01)
    outbox.put("w", "webhook", {}, now=time.time())
    worker.start()
    outbox.put("r", "retrain", {}, now=time.time())
    assert poll_until(lambda: outbox.counts()["retrain"].get("done") == 1)
    assert not worker.drain(0.1)
    began = time.monotonic()
    assert not worker.stop(0.2)
    assert time.monotonic() - began < 2.0
    entry = outbox.get("w")
    assert entry is not None and entry.state == "pending"
    release.set()
    assert worker.stop(5.0)


def test_something_put_wakes_the_worker_at_once(outbox: Outbox) -> None:
    worker = Worker(outbox, {"slack": lambda e: Done()}, poll=30.0)
    worker.start()
    time.sleep(0.1)
    outbox.put("k", "slack", {}, now=time.time())
    assert worker.drain(5.0)
    assert worker.stop(5.0)


def test_entries_of_a_kind_without_a_handler_stay(outbox: Outbox) -> None:
    outbox.put("k", "slack", {}, now=1.0)
    worker = Worker(outbox, {"webhook": lambda e: Done()})
    assert worker.run_due() == 0
    assert worker.drain(0.1)
    assert outbox.counts() == {"slack": {"pending": 1}}


def test_while_the_outbox_cannot_be_written_an_action_is_not_performed_over_and_over(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    performed: list[str] = []
    other = sqlite3.connect(outbox.path, isolation_level=None, timeout=10.0)
    outbox._connection.execute("PRAGMA busy_timeout = 10")

    def handler(entry: Entry) -> Done:
        if not performed:
            other_locked.set()
            assert locked.wait(5.0)
        performed.append(entry.key)
        return Done()

    other_locked, locked = threading.Event(), threading.Event()
    worker = Worker(outbox, {"slack": handler}, poll=0.01)
    outbox.put("k", "slack", {}, now=time.time())
    worker.start()
    assert other_locked.wait(5.0)
    other.execute("BEGIN IMMEDIATE")
    locked.set()
    assert poll_until(lambda: "cannot be used" in caplog.text)
    time.sleep(0.2)
    other.execute("ROLLBACK")
    other.close()
    assert worker.drain(10.0)
    assert worker.stop(5.0)
    assert performed == ["k"]


DECISION = {"id": "decision-1", "verdict": {"model": "default/iris"}}

DIES = """
    import os, signal, sys
    from pathlib import Path
    from pydantic import SecretStr
    from streaming.actions.webhook import Webhook
    from streaming.actions.outbox import Outbox
    from streaming.actions.worker import Worker

    post = Webhook(SecretStr(sys.argv[2]))

    def dies_before_the_note(entry):
        post(entry)
        os.kill(os.getpid(), signal.SIGKILL)

    outbox = Outbox(Path(sys.argv[1]))
    outbox.put("decision-1:webhook", "webhook", {"id": "decision-1", "verdict": {"model": "default/iris"}}, now=1_800_000_000.0)
    Worker(outbox, {"webhook": dies_before_the_note}, clock=lambda: 1_800_000_000.0).run_due()
"""


def test_a_kill_between_the_action_and_its_note_repeats_the_same_event_under_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with Receiver() as receiver:
        url = receiver.url("/hook")
        command = [sys.executable, "-c", textwrap.dedent(DIES), str(path), url]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        assert subprocess.run(command, env=environment, timeout=60).returncode == -signal.SIGKILL
        assert len(receiver.requests) == 1
        outbox = Outbox(path)
        assert not outbox.put("decision-1:webhook", "webhook", DECISION, now=1_800_000_005.0)
        assert Worker(outbox, {"webhook": Webhook(SecretStr(url))}, clock=lambda: 1_800_000_005.0).run_due() == 1
        first, second = receiver.requests
    assert first.headers["ce-id"] == second.headers["ce-id"] == "decision-1"
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == "decision-1:webhook"
    assert (first.headers["ce-time"], first.body) == (second.headers["ce-time"], second.body)
    assert outbox.counts() == {"webhook": {"done": 1}}
