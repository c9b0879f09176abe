"""The spool's files: what a kill, a power cut or a bad disk leaves behind is read as far as it can be, and never twice or out of order."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.errors import EventError, LogCorrupt, LogFull, LogUnavailable, ServiceError
from inference.event import Event, from_kafka_text
from inference.spool import Spool, store
from inference.spool.segments import HEAD_BYTES


def event(number, size=20):
    return Event(f"e{number}", "pod", "t", extensions={"namespace": "ns", "inferenceservicename": "m"}, data=b"x" * size)


def numbers(read):
    return [number for number, _ in read]


def ids(spool):
    return [dict(message.headers)["ce_id"] for _, message in spool.read(spool.start, 100_000)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "spool"


def filled(folder, appends=5, each=4, **options):
    """A spool with so many appends of so many events."""
    spool = Spool(folder, **options)
    for place in range(appends):
        spool.append([event(place * each + number) for number in range(each)])
    return spool


def files(folder):
    return sorted(folder.glob("*.frames"))


def test_an_event_is_the_same_after_its_way_through_the_spool(folder):
    spool = Spool(folder)
    odd = Event("é", "pod", "t", "2026-10-01T00:00:00Z", "application/json", {"namespace": "ns", "x": ""}, b"\x00\xff")
    spool.append([event(1), odd])
    assert [from_kafka_text(message.headers, message.value) for _, message in spool.read(0)] == [event(1), odd]
    with pytest.raises(EventError, match="would change"):
        spool.append([event(2), Event("1", "s", "t", extensions={"Namespace": "x"})])
    assert spool.end == 2, "all or nothing"
    spool.close()


def test_what_was_appended_is_there_after_a_kill_and_what_was_dropped_is_not(folder):
    script = (
        "import sys, os, signal; sys.path.insert(0, sys.argv[2]); from test_spool_files import filled; import pathlib\n"
        "spool = filled(pathlib.Path(sys.argv[1])); spool.drop_before(7); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, folder, Path(__file__).parent], capture_output=True, timeout=60)
    assert done.returncode == -9, done.stderr
    spool = Spool(folder)
    assert (spool.start, spool.end) == (7, 20)
    assert ids(spool) == [f"e{number}" for number in range(7, 20)]
    spool.append([event(20)])
    assert numbers(spool.read(18)) == [18, 19, 20]
    spool.close()


@pytest.mark.parametrize("cut", [1, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 5, -1])
def test_a_frame_that_was_cut_short_is_cut_off_and_what_comes_next_is_read_behind_the_rest(folder, cut, caplog):
    spool = filled(folder, appends=3)
    before = spool._segments[0].size
    spool.append([event(100)])
    spool.close()
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: before + cut if cut > 0 else cut])
    spool = Spool(folder)
    assert "are no whole frame and are cut off" in caplog.text
    assert ids(spool) == [f"e{number}" for number in range(12)]
    spool.append([event(12)])
    spool.close()
    assert ids(Spool(folder)) == [f"e{number}" for number in range(13)]


def test_zeros_at_the_end_as_a_power_cut_leaves_them_are_cut_off(folder, caplog):
    filled(folder, appends=2).close()
    (path,) = files(folder)
    path.write_bytes(path.read_bytes() + bytes(5_000))
    spool = Spool(folder)
    assert "5000 bytes at its end" in caplog.text
    assert path.stat().st_size == spool._segments[0].size
    assert ids(spool) == [f"e{number}" for number in range(8)]


def test_a_last_frame_that_is_as_long_as_it_should_be_and_holds_something_else_is_cut_off(folder, caplog):
    spool = filled(folder, appends=3)
    spool.close()
    (path,) = files(folder)
    flip(path, path.stat().st_size - 1)
    spool = Spool(folder)
    assert "are no whole frame and are cut off" in caplog.text
    assert ids(spool) == [f"e{number}" for number in range(8)]


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_a_damaged_frame_is_counted_as_lost_and_the_others_are_carried(folder, caplog):
    spool = filled(folder, appends=4)
    spool.close()
    (path,) = files(folder)
    frame = path.stat().st_size // 4
    flip(path, frame + HEAD_BYTES + 3)
    spool = Spool(folder)
    assert numbers(spool.read(0)) == [0, 1, 2, 3]
    assert spool.dead_letter_counts() == {}
    spool.drop_before(4)
    assert numbers(spool.read(4)) == [*range(8, 16)]
    assert "4 events are lost" in caplog.text
    assert spool.dead_letter_counts() == {"lost_spool_damaged": 4}


def test_a_damaged_header_costs_the_rest_of_its_file_and_no_more(folder):
    spool = filled(folder, appends=40, each=10)
    spool._segment_bytes = 1
    spool.append([event(400)])
    spool.append([event(401)])
    ((_, frame),) = spool._frames(100, 1)
    spool.close()
    first, second, _ = files(folder)
    flip(first, frame.start + 1)
    spool = Spool(folder)
    read = numbers(spool.read(0, 1_000))
    assert read == [*range(100)]
    spool.drop_before(100)
    assert numbers(spool.read(100, 1_000)) == [400, 401]
    assert spool.dead_letter_counts() == {"lost_spool_damaged": 300}
    assert int(second.stem) == 400


def test_damage_at_the_very_end_leaves_nothing_that_waits_for_ever(folder):
    spool = filled(folder, appends=2)
    flip(spool._segments[0].path, spool._segments[0].size // 2 + HEAD_BYTES + 1)
    spool.drop_before(4)
    assert spool.read(4) == []
    assert (spool.start, spool.end) == (8, 8)
    assert spool.read(8) == []
    assert spool.dead_letter_counts() == {"lost_spool_damaged": 4}, "once"


@pytest.mark.parametrize("stored", [b"", b"\xff" * 12, bytes(11)])
def test_a_position_that_is_lost_or_damaged_only_carries_some_twice(folder, stored):
    spool = filled(folder)
    spool.drop_before(9)
    spool.close()
    (folder / "position").write_bytes(stored)
    spool = Spool(folder)
    assert (spool.start, spool.end) == (0, 20)


def test_a_number_is_not_given_twice_even_when_a_power_cut_took_what_was_carried(folder):
    spool = filled(folder)
    spool.drop_before(20)
    spool.close()
    files(folder)[0].unlink()
    spool = Spool(folder)
    assert (spool.start, spool.end) == (20, 20)
    spool.append([event(20)])
    assert numbers(spool.read(20)) == [20]
    spool.close()
    assert ids(Spool(folder)) == ["e20"]


def test_what_a_power_cut_took_of_a_file_leaves_a_gap_and_no_event_in_it(folder):
    spool = filled(folder, appends=3)
    size = spool._segments[0].size
    spool.append([event(12), event(13)])
    spool.drop_before(14)
    spool.close()
    os.truncate(files(folder)[0], size)
    spool = Spool(folder)
    assert (spool.start, spool.end, spool.extent()) == (14, 14, (0, 0, None))
    spool.append([event(14)])
    assert numbers(spool.read(14)) == [14]
    spool.close()
    spool = Spool(folder)
    assert (spool.start, spool.end) == (14, 15)
    assert ids(spool) == ["e14"]


def test_files_go_once_all_of_them_was_carried(folder):
    spool = Spool(folder, max_bytes=700_000)
    for number in range(40):
        spool.append([event(number, size=10_000)])
    assert len(files(folder)) > 3
    assert ids(spool) == [f"e{number}" for number in range(40)]
    spool.drop_before(39)
    assert [int(path.stem) for path in files(folder)] == [int(spool._segments[0].path.stem)]
    assert ids(spool) == ["e39"]
    assert 10_000 < spool.extent().bytes < 11_000
    spool.drop_before(40)
    assert spool.extent() == (0, 0, None)


def test_only_one_process_has_a_spool(folder):
    spool = Spool(folder)
    with pytest.raises(ServiceError, match="a gateway is at work on the spool"):
        Spool(folder)
    spool.close()
    Spool(folder).close()


def test_a_folder_that_cannot_be_had_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogUnavailable, match="cannot be read or written"):
        Spool(tmp_path / "file" / "spool")


def test_a_position_beyond_the_end_is_an_error(folder):
    spool = filled(folder)
    with pytest.raises(LogCorrupt, match="ends at 20, before 21"):
        spool.drop_before(21)


def test_an_append_that_fails_halfway_leaves_nothing_behind(folder, monkeypatch):
    spool = filled(folder, appends=1)
    size, real, calls = files(folder)[0].stat().st_size, os.pwrite, []

    def half(file, data, at):
        calls.append(at)
        if len(calls) == 1:
            return real(file, data[: len(data) // 2], at)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(LogFull, match="its disk is full"):
        spool.append([event(4)])
    monkeypatch.undo()
    assert len(calls) == 2, "what is left is written, too, or tried to"
    assert files(folder)[0].stat().st_size == size
    spool.append([event(4)])
    assert ids(spool) == [f"e{number}" for number in range(5)]


def test_a_read_stops_at_so_many_bytes(folder, monkeypatch):
    spool = filled(folder, appends=10, each=1)
    monkeypatch.setattr(store, "READ_BYTES", 3 * spool._segments[0].size // 10)
    assert 3 <= len(spool.read(0, 1_000)) <= 4


def test_what_waits_is_synced_once(folder, monkeypatch):
    from inference.spool import segments

    synced = []
    monkeypatch.setattr(segments, "_sync", synced.append)
    spool = filled(folder)
    spool.sync()
    spool.sync()
    assert len(synced) == 1
    spool.append([event(20)])
    spool.sync()
    assert len(synced) == 2


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 6)),
        st.tuples(st.just("drop"), st.integers(0, 6)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("read"), st.integers(1, 7)),
    ),
    max_size=40,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_it_is_a_queue(steps, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(store, "READ_BYTES", 700)
    folder = tmp_path_factory.mktemp("q")
    spool, start, end = Spool(folder), 0, 0
    spool._segment_bytes = 900
    for step, count in steps:
        if step == "append":
            spool.append([event(end + number) for number in range(count)])
            end += count
        elif step == "drop":
            start = min(end, start + count)
            spool.drop_before(start)
        elif step == "restart":
            spool.close()
            spool = Spool(folder)
            spool._segment_bytes = 900
        else:
            read, taken = spool.read(start, count), spool.take(start, count)
            for found in (read, taken):
                assert numbers(found) == [*range(start, start + len(found))]
                assert [dict(message.headers)["ce_id"] for _, message in found] == [f"e{number}" for number in numbers(found)]
                assert len(found) <= count
                assert bool(found) == (start < end)
        assert (spool.start, spool.end, spool.extent().events) == (start, end, end - start)
        assert all(segment.end > start for segment in list(spool._segments)[:-1])
    spool.close()
