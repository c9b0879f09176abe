"""No room: what is refused is counted and told, what was acknowledged stays, and it goes on once there is room again."""

import asyncio
import json
import logging
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from gateways import ce, holding, in_thread, join, running, until

from inference.errors import LogFull
from inference.event import Event
from inference.gateway_writer import Writer
from inference.log.embedded import EmbeddedLog
from inference.spool import Spool

ROOT = Path(__file__).parents[1]


def event(number, size=1000):
    extensions = {"namespace": "ns", "inferenceservicename": "m"}
    return Event(f"e{number}", "pod", "io.driftloop.label", extensions=extensions, data=b"x" * size)


def refusals(caplog):
    return [record.getMessage() for record in caplog.records if "refused with 503" in record.getMessage()]


def test_a_full_spool_says_503_counts_each_loss_tells_it_once_and_takes_events_again_when_it_was_drained(tmp_path, caplog):
    spool = Spool(tmp_path / "spool", max_bytes=20_000)
    with running(tmp_path / "spool", log=spool) as served:
        accepted = 0
        while served.ask("POST", "/", bytes(2_000), ce(id_=str(accepted)))[0] == 200:
            accepted += 1
        assert 5 < accepted < 12
        connection = served.connection()
        connection.request("POST", "/", bytes(2_000), ce())
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("retry-after")) == (503, "1")
        problem = json.loads(answer.read())
        connection.close()
        assert problem["error"] == "log_full"
        assert "is full" in problem["message"]
        assert [int(dict(message.headers)["ce_id"]) for _, message in spool.read(spool.start)] == list(range(accepted)), (
            "all of them, and no more"
        )
        counts = served.counts()
        assert (counts["refused"], counts["dead_letters"]) == ({"log_full": 2}, {"lost_log_full": 2})
        assert served.ask("POST", "/", b"{}", ce("nope"))[0] == 400, "a wrong event is set aside all the same"
        assert len(refusals(caplog)) == 1
        assert "log_full" in refusals(caplog)[0]

        spool.drop_before(spool.end)
        assert served.ask("POST", "/", b"again", ce()) == (200, b"")
        assert [message.value for _, message in spool.read(spool.start)] == [b"again"]
        assert spool.dead_letter_counts() == {"lost_log_full": 2, "unknown_type": 1}, "on disk now, and after a restart"


def test_the_end_of_an_episode_is_told_with_the_number_of_events_that_were_lost(tmp_path, caplog):
    with running(tmp_path / "events.db", busy_timeout=0.05) as served:
        served.gateway._refusing._quiet = 0.0
        with holding(served.log.path):
            for _ in range(3):
                assert served.ask("POST", "/", b"{}", ce())[0] == 503
        assert served.ask("POST", "/", b"{}", ce()) == (200, b"")
        told = [record.getMessage() for record in caplog.records if "taken in again" in record.getMessage()]
        assert told == ["events are taken in again; 3 were lost meanwhile"]
        assert len(refusals(caplog)) == 1
        assert served.log.dead_letter_counts() == {"lost_log_unavailable": 3}


def test_losses_at_the_very_end_are_still_written_down(tmp_path):
    with running(tmp_path / "events.db", max_waiting=1, busy_timeout=20) as served:
        with holding(served.log.path):
            post = in_thread(served, b"1", ce())
            until(lambda: served.gateway.counts()["waiting"] == 1)
            assert served.ask("POST", "/", b"2", ce())[0] == 503
        assert join(post) == (200, b"")
    log = EmbeddedLog(tmp_path / "events.db")
    assert log.dead_letter_counts() == {"lost_queue_full": 1}
    log.close()


def test_an_unauthorized_post_is_no_lost_event(tmp_path):
    from inference.access import Access

    with running(tmp_path / "events.db", access=Access("12345678")) as served:
        assert served.ask("POST", "/", b"{}", ce())[0] == 401
        assert (served.counts()["refused"], served.counts()["dead_letters"]) == ({"unauthorized": 1}, {})


def test_dead_letters_do_not_make_a_spool_full(tmp_path):
    spool = Spool(tmp_path / "spool", max_bytes=20_000, max_dead_letters=50)
    for number in range(50):
        spool.set_aside("nope", str(number), [], bytes(10_000))
    spool.append([event(1)])
    assert spool.extent().events == 1
    assert spool.extent().bytes < 2_000
    spool.append([event(n) for n in range(20)])
    with pytest.raises(LogFull, match="where 20000 may be"):
        spool.append([event(21)])
    spool.drop_before(spool.end)
    spool.append([event(n) for n in range(15)])
    assert len(spool.dead_letters()) == 50
    assert len(spool.read(spool.start)) == 15


def test_a_spool_tells_how_much_waits_and_for_how_long(tmp_path):
    now = 1_000.0
    spool = Spool(tmp_path / "spool", clock=lambda: now)
    assert spool.extent() == (0, 0, None)
    spool.append([event(1, 0)])
    now = 1_005.0
    spool.append([event(2, 0), event(3, 0)])
    assert (spool.extent().events, spool.extent().oldest) == (3, 1_000.0)
    spool.drop_before(1)
    assert (spool.extent().events, spool.extent().oldest) == (2, 1_005.0)
    spool.drop_before(3)
    assert spool.extent() == (0, 0, None)


def test_a_database_that_may_not_grow_is_log_full(tmp_path):
    log = EmbeddedLog(tmp_path / "events.db")
    log._connection.execute("PRAGMA max_page_count=30")
    with running(tmp_path / "events.db", log=log) as served:
        accepted = 0
        while served.ask("POST", "/", bytes(10_000), ce(id_=str(accepted)))[0] == 200:
            accepted += 1
        assert accepted > 1
        assert json.loads(served.ask("POST", "/", bytes(10_000), ce())[1])["error"] == "log_full"
        assert len(served.bodies()) == accepted
        log._connection.execute("PRAGMA max_page_count=100000")
        assert served.ask("POST", "/", bytes(10_000), ce()) == (200, b"")


SMALL_DISK = """
import sys, pathlib, shutil, time
from inference.errors import LogFull, LogUnavailable
from inference.event import Event
from inference.gateway_writer import Writer
from inference.spool import Forwarder, Spool

disk = pathlib.Path(sys.argv[1])

def event(number):
    return Event(f"e{number}", "pod", "t", extensions={"namespace": "ns", "inferenceservicename": "m"}, data=bytes(5_000))

class Target:
    def __init__(self):
        self.got = []
    def append(self, events):
        self.got += events
        return []
    def close(self):
        pass

spool = Spool(disk / "spool")
acknowledged = 0
try:
    while True:
        spool.append([event(acknowledged)])
        acknowledged += 1
except LogFull as error:
    print(error)
free = shutil.disk_usage(disk).free
print(acknowledged, free)
assert acknowledged > 500, acknowledged
assert free > 5_000_000, "some room is kept, so that what was carried can be dropped"
target = Target()
forwarder = Forwarder(spool, lambda: target)
forwarder.start()
deadline = time.monotonic() + 20
while spool.extent().events and time.monotonic() < deadline:
    time.sleep(0.01)
forwarder.stop()
assert spool.extent().events == 0
assert [e.id for e in target.got] == [f"e{n}" for n in range(acknowledged)], "each once, in order"
spool.append([event(n) for n in range(acknowledged // 2)])

# Somebody else fills the disk to the last byte.
filler = open(disk / "filler", "wb", buffering=0)
try:
    while True:
        filler.write(bytes(4096))
except OSError:
    pass
try:
    spool.append([event(-1)])
    raise SystemExit("appended to a full disk")
except LogUnavailable as error:
    assert "disk is full" in str(error), error
assert spool.extent().events == acknowledged // 2, "what was acknowledged is there"
filler.truncate(0)
spool.append([event(-2)])
print("goes on")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux namespaces for a small file system of its own")
def test_a_small_disk_fills_up_is_drained_and_takes_events_again(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SMALL_DISK))
    command = f"mount -t tmpfs -o size=16m tmpfs {disk} && PYTHONPATH={ROOT} exec {sys.executable} {script} {disk}"
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=60)
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no file system of one's own may be made here: {done.stderr.strip()[:100]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "its disk is full" in done.stdout
    assert done.stdout.endswith("goes on\n")


def test_a_spool_whose_folder_is_gone_says_so(tmp_path):
    folder = tmp_path / "folder"
    spool = Spool(folder / "spool")
    shutil.rmtree(folder)
    with running(folder / "spool", log=spool) as served:
        status, answer = served.ask("POST", "/", b"{}", ce())
        assert status == 503
        assert "its folder is gone" in json.loads(answer)["message"]


def test_nothing_is_logged_for_an_event_that_is_taken_in(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="inference")
    with running(tmp_path / "events.db") as served:
        served.ask("POST", "/", b"{}", ce())
    assert [record.getMessage() for record in caplog.records if record.name.startswith("inference")] == []


def test_an_answer_that_fails_costs_the_others_nothing(tmp_path, caplog):
    log = EmbeddedLog(tmp_path / "events.db")

    async def write():
        writer, told = Writer(log), []

        def fails(_):
            raise RuntimeError("the connection is in no state to be written to")

        for number, done in enumerate((fails, told.append, fails, told.append)):
            writer.put(event(number), done)
        await writer.close()
        writer = Writer(log)
        writer.put(event(4), told.append)
        await writer.close()
        return told

    assert asyncio.run(write()) == [None, None, None]
    assert sum(log.end_positions().values()) == 5
    assert [record.getMessage() for record in caplog.records] == ["an answer failed"] * 2
    log.close()
