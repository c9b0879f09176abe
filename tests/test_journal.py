"""The journal: each outcome once, whatever its writer dies of, and never more than two files of it."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import orjson
import pytest

from inference.errors import ServiceError
from streaming.journal import Journal


def outcome(number: int) -> dict[str, Any]:
    return {"outcome": "verdict", "id": f"v{number}", "number": number}


def write(folder: Path, *numbers: int) -> None:
    """One process that says these outcomes and stops."""
    journal = Journal(folder)
    for number in numbers:
        journal.outcome(outcome(number))
    journal.close()


def lines(folder: Path, name: str = "outcomes.jsonl") -> list[int]:
    return [orjson.loads(line)["number"] for line in (folder / name).read_bytes().splitlines()]


def test_an_outcome_is_a_line_and_there_when_the_call_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "state")
    journal.outcome(outcome(1))
    assert (tmp_path / "new" / "state" / "outcomes.jsonl").read_bytes() == b'{"outcome":"verdict","id":"v1","number":1}\n'


def test_what_is_said_again_is_written_once_also_after_a_restart(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 1, 2, 3)
    write(tmp_path, 2, 3, 4)
    write(tmp_path, 1, 2, 3, 4, 5)
    assert lines(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("left", [b"", b"{", b'{"outcome":"verdict","id":"v2"', b'{"outcome":"verdict","id":"v2","number":2}'])
def test_a_line_that_a_kill_cut_is_dropped_and_written_again(tmp_path: Path, left: bytes) -> None:
    write(tmp_path, 1)
    with (tmp_path / "outcomes.jsonl").open("ab") as file:
        file.write(left)
    write(tmp_path, 1, 2)
    assert lines(tmp_path) == [1, 2]


def test_lines_of_another_making_are_kept_and_known_by_nothing(tmp_path: Path) -> None:
    strange = b"no json\n[]\n7\n{}\n\n"
    (tmp_path / "outcomes.jsonl").write_bytes(strange)
    write(tmp_path, 1)
    assert (tmp_path / "outcomes.jsonl").read_bytes().startswith(strange)
    assert lines_after(tmp_path, strange) == [1]


def lines_after(folder: Path, start: bytes) -> list[int]:
    content = (folder / "outcomes.jsonl").read_bytes().removeprefix(start)
    return [orjson.loads(line)["number"] for line in content.splitlines()]


WRITES_ON = """
    import sys
    from pathlib import Path
    from streaming.journal import Journal

    journal = Journal(Path(sys.argv[1]))
    print("ready", flush=True)
    number = 0
    while True:
        number += 1
        journal.outcome({"outcome": "verdict", "id": f"v{number}", "number": number, "text": "x" * 200_000})
"""


def test_a_writer_that_is_killed_in_the_middle_leaves_whole_lines_to_its_successor(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITES_ON), str(tmp_path)], env=environment, stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        size = (tmp_path / "outcomes.jsonl").stat().st_size
        while (tmp_path / "outcomes.jsonl").stat().st_size < size + 500_000:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    Journal(tmp_path).close()
    found = lines(tmp_path)
    assert len(found) > 5 and found == [*range(1, len(found) + 1)]


def test_the_journal_is_two_files_that_are_both_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.journal._MAX_BYTES", 200)
    journal = Journal(tmp_path)
    for number in range(1, 41):
        journal.outcome(outcome(number))
        assert (tmp_path / "outcomes.jsonl").stat().st_size <= 200
    journal.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outcomes.1.jsonl", "outcomes.jsonl"]
    assert (tmp_path / "outcomes.1.jsonl").stat().st_size < 300
    kept = [*lines(tmp_path, "outcomes.1.jsonl"), *lines(tmp_path)]
    assert kept == [*range(kept[0], 41)] and len(kept) >= 5
    write(tmp_path, 41)
    assert [*lines(tmp_path, "outcomes.1.jsonl"), *lines(tmp_path)][-1] == 41


def test_what_is_in_the_older_file_is_known_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.journal._MAX_BYTES", 200)
    write(tmp_path, *range(1, 8))
    kept = [*lines(tmp_path, "outcomes.1.jsonl"), *lines(tmp_path)]
    monkeypatch.undo()
    write(tmp_path, *kept, 8)
    assert [*lines(tmp_path, "outcomes.1.jsonl"), *lines(tmp_path)] == [*kept, 8]


def test_only_the_newest_ids_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.journal._REMEMBERED", 3)
    write(tmp_path, 1, 2, 3, 4)
    journal = Journal(tmp_path)
    for number in (2, 3, 4, 1):
        journal.outcome(outcome(number))
    assert len(journal._known) == 3
    assert lines(tmp_path) == [1, 2, 3, 4, 1]


def test_the_status_is_replaced_as_a_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.status({"records": 1, "long": "x" * 1000})
    journal.status({"records": 2})
    assert orjson.loads((tmp_path / "status.json").read_bytes()) == {"records": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outcomes.jsonl", "status.json"]


FILLS_UP = """
    import logging, resource, sys
    from pathlib import Path
    from streaming.journal import Journal

    logging.basicConfig(format="%(message)s")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(Path(sys.argv[1]))

    def say(first, last):
        for number in range(first, last):
            journal.outcome({"outcome": "verdict", "id": f"v{number}", "number": number, "text": "x" * 50})

    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, unlimited[1]))
    say(1, 500)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    say(500, 510)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, unlimited[1]))
    say(510, 520)
    journal.close()
"""


def test_a_disk_that_fills_up_costs_lines_but_never_half_of_one_and_is_told_once_each_time(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(FILLS_UP), str(tmp_path)]
    done = subprocess.run(command, env=environment, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"the journal in {tmp_path} cannot be written: File too large\n" * 2)
    found = lines(tmp_path)
    assert found == sorted(set(found))
    assert found[:9] == [*range(1, 10)] and found[-10:] == [*range(500, 510)] and len(found) < 509


def test_a_journal_that_cannot_make_room_goes_on_and_makes_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streaming.journal._MAX_BYTES", 100)
    journal = Journal(tmp_path)
    (tmp_path / "outcomes.1.jsonl").mkdir()
    for number in range(1, 6):
        journal.outcome(outcome(number))
    assert [record.message for record in caplog.records] == [f"the journal in {tmp_path} cannot be written: Is a directory"]
    assert lines(tmp_path) == [1, 2, 3, 4, 5]
    (tmp_path / "outcomes.1.jsonl").rmdir()
    for number in range(6, 8):
        journal.outcome(outcome(number))
    assert (lines(tmp_path, "outcomes.1.jsonl"), lines(tmp_path)) == ([1, 2, 3, 4, 5, 6], [7])


def test_a_file_that_somebody_took_away_is_begun_anew_when_it_would_be_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streaming.journal._MAX_BYTES", 100)
    journal = Journal(tmp_path)
    journal.outcome(outcome(1))
    (tmp_path / "outcomes.jsonl").unlink()
    for number in range(2, 6):
        journal.outcome(outcome(number))
    assert lines(tmp_path) == [4, 5]
    assert caplog.records == []


def test_a_folder_that_goes_away_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streaming.journal._MAX_BYTES", 100)
    folder, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    journal = Journal(folder)
    journal.outcome(outcome(1))
    folder.rename(elsewhere)
    for number in range(2, 8):
        journal.outcome(outcome(number))
    journal.status({})
    assert [record.message for record in caplog.records][1:] == []
    elsewhere.rename(folder)
    for number in range(8, 10):
        journal.outcome(outcome(number))
    assert 9 in lines(folder) and len(caplog.records) == 1


def test_a_status_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    (tmp_path / ".status.json").mkdir()
    journal.status({})
    journal.status({})
    assert [record.message for record in caplog.records] == [f"the journal in {tmp_path} cannot be written: Is a directory"]
    (tmp_path / ".status.json").rmdir()
    journal.status({"records": 1})
    assert orjson.loads((tmp_path / "status.json").read_bytes()) == {"records": 1}


def test_a_state_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match=r"state folder .*file cannot be written: .*give one that this process may write to"):
        Journal(tmp_path / "file")
    (tmp_path / "taken" / "outcomes.jsonl").mkdir(parents=True)
    with pytest.raises(ServiceError, match="taken cannot be written"):
        Journal(tmp_path / "taken")
