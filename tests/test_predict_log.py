"""The predict log: lines, rotation, and disks that fail."""

import json
import logging
import sys
from pathlib import Path

import pytest

from inference.errors import ServiceError
from inference.predict_log import PredictLog


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(log, number=0):
    log.write(id_=f"id-{number}", model="default/iris", version="1", inputs=[[5.1, 3.5], [1, None]], outputs=[number, "ü"])


def test_a_prediction_is_one_json_line(tmp_path):
    path = tmp_path / "logs" / "predict_log.json"
    with PredictLog(path, clock=lambda: 1_700_000_000.5) as log:
        write(log, 7)
    assert lines(path) == [
        {
            "time": "2023-11-14T22:13:20.500000Z",
            "id": "id-7",
            "model": "default/iris",
            "version": "1",
            "inputs": [[5.1, 3.5], [1, None]],
            "outputs": [7, "ü"],
        }
    ]


def test_the_file_is_rotated_by_size_and_no_line_is_cut(tmp_path):
    path = tmp_path / "p.json"
    with PredictLog(path, max_bytes=1000, backups=2) as log:
        for number in range(30):
            write(log, number)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.json", "p.json.1", "p.json.2"]
    assert all(p.stat().st_size <= 1000 for p in tmp_path.iterdir())
    kept = [line["id"] for name in ("p.json.2", "p.json.1", "p.json") for line in lines(tmp_path / name)]
    assert kept == [f"id-{number}" for number in range(30 - len(kept), 30)]


def test_a_restart_appends_and_a_line_cut_short_by_a_crash_spoils_no_other(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"id": "whole"}\n{"id": "cu', encoding="utf-8")
    with PredictLog(path) as log:
        write(log, 1)
    first, cut, last = path.read_text(encoding="utf-8").splitlines()
    assert (json.loads(first)["id"], cut, json.loads(last)["id"]) == ("whole", '{"id": "cu', "id-1")


@pytest.mark.parametrize("place", ["a-file/p.json", "a-folder"])
def test_a_file_that_cannot_be_written_is_a_clear_error_at_the_start(tmp_path, place):
    (tmp_path / "a-file").write_text("x", encoding="utf-8")
    (tmp_path / "a-folder").mkdir()
    with pytest.raises(ServiceError, match=rf"{place} cannot be written: .*; name a file in a folder"):
        PredictLog(tmp_path / place)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_counted_and_warned_about_once_and_never_raised(caplog):
    with caplog.at_level(logging.WARNING, "inference.predict_log"), PredictLog(Path("/dev/full")) as log:
        for number in range(3):
            write(log, number)
        assert log.lost == 3
    assert caplog.messages == ["the predict log /dev/full lost 1 line(s) so far: [Errno 28] No space left on device (predictions go on)"]


def test_the_log_goes_on_when_the_disk_has_room_again(tmp_path, monkeypatch):
    path = tmp_path / "p.json"
    with PredictLog(path, max_bytes=300, backups=1) as log:
        write(log, 0)
        (tmp_path / "p.json.1").mkdir()  # rotation cannot replace a folder
        (tmp_path / "p.json.1" / "x").touch()
        for number in (1, 2, 3):
            write(log, number)
        assert log.lost > 0
        (tmp_path / "p.json.1" / "x").unlink()
        (tmp_path / "p.json.1").rmdir()
        write(log, 4)
    assert "id-4" in [line["id"] for line in lines(path)]


def test_a_value_that_json_cannot_hold_is_written_as_text_and_nan_as_null(tmp_path):
    with PredictLog(tmp_path / "p.json") as log:
        log.write(id_="a", model="m/n", version="1", inputs=[[float("nan")]], outputs=[1 + 2j])
        log.write(id_="b", model="m/n", version="1", inputs=[[2**70]], outputs=["\ud800"])
        write(log, 5)
    written = lines(tmp_path / "p.json")
    assert (written[0]["inputs"], written[0]["outputs"]) == ([[None]], ["(1+2j)"])
    assert written[-1]["id"] == "id-5"
    assert log.lost == 3 - len(written)


def test_importing_the_log_is_light():
    import subprocess

    code = "import sys, inference.predict_log, inference.tap; print(sorted({'kserve', 'httpx', 'numpy', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
