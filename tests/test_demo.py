"""The demo, for real: every process started, the loop closed, quiet traffic left alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inference.log import open_log
from inference.versions import Repository
from streaming.cli import main
from streaming.demo.traffic import FEATURES, IN_INCHES, Rows, iris
from streaming.demo.view import slack_text
from streaming.testing import Receiver

MODEL = "default/iris-sklearn"
FIELDS = {
    "events",
    "drift_began_at_event",
    "drift_detected_at_event",
    "false_alarms",
    "detection_seconds",
    "run_state",
    "promoted_version",
    "accuracy_before",
    "accuracy_after",
    "slack_messages",
    "stable_after_promotion",
    "report_path",
    "wall_seconds",
}


def demo(folder, *arguments):
    command = [sys.executable, "-m", "streaming.cli", "demo", "--folder", str(folder), "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_the_loop_closes_and_the_result_says_so(tmp_path):
    with Receiver() as slack:
        done = demo(tmp_path / "demo", "--slack-webhook", slack.url("/services/T0/B0/s3cret"))
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        messages = [request.json() for request in slack.requests]
    assert result.keys() >= FIELDS
    assert result["run_state"] == "promoted"
    assert result["promoted_version"] == "2"
    assert result["false_alarms"] == 0
    assert result["stable_after_promotion"] is True
    assert 0 < result["drift_detected_at_event"] - result["drift_began_at_event"] <= 100
    assert result["accuracy_before"] < 0.5 < 0.85 < result["accuracy_after"]
    assert result["slack_messages"] == len(messages) == 2
    assert "Retraining started" in messages[0]["text"]
    assert "version 2 is live" in messages[1]["text"]
    assert "petal_length" in Path(result["report_path"]).read_text(encoding="utf-8")
    secret_free = [path for path in (tmp_path / "demo").rglob("*") if path.is_file()]
    assert not [path for path in secret_free if b"s3cret" in path.read_bytes()]
    assert "s3cret" not in done.stderr
    versions = Repository(tmp_path / "demo" / "models")
    assert versions.current(MODEL) == "2"
    assert versions.read(MODEL, "2").parent == "1"
    predicted = [json.loads(line) for line in (tmp_path / "demo" / "predict_log.json").read_text().splitlines()]
    assert {line["version"] for line in predicted} == {"1", "2"}
    replayed = subprocess.run(
        [sys.executable, "-m", "streaming.cli", "replay", "--config", str(tmp_path / "demo" / "driftloop.yaml"), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert replayed.stdout.splitlines()[:-1] == (tmp_path / "demo" / "state" / "outcomes.jsonl").read_text().splitlines()
    assert json.loads(replayed.stdout.splitlines()[-1])["retrain"] == 1


@pytest.mark.slow
def test_quiet_traffic_is_left_alone(tmp_path):
    done = demo(tmp_path / "demo", "--no-drift", "--seed", "11")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["run_state"], result["false_alarms"], result["slack_messages"]) == ("none", 0, 0)
    assert result["windows_judged"] >= 30
    assert result["report_path"] is None
    log = open_log(str(tmp_path / "demo" / "log.db"))
    ends = log.end_positions()
    # A promotion and the end of its run, and three events per prediction: both halves and the label.
    assert sum(ends.values()) == 2 + 3 * result["events"]


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "precious").write_text("data")
    assert main(["demo", "--folder", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "data"


def test_drifted_rows_are_real_rows_with_two_lengths_in_inches():
    features, species = iris()
    known = {tuple(round(float(v), 2) for v in row): int(kind) for row, kind in zip(features, species, strict=True)}
    rows = Rows(3)
    kinds = []
    for _ in range(200):
        row, kind = rows.draw(drifted=True)
        back = [value * 2.54 if name in IN_INCHES else value for name, value in zip(FEATURES, row, strict=True)]
        nearest = min(known, key=lambda one: sum(abs(a - b) for a, b in zip(one, back, strict=True)))
        assert sum(abs(a - b) for a, b in zip(nearest, back, strict=True)) < 0.05
        kinds.append(kind)
    assert kinds.count(2) > kinds.count(0) * 2


def test_a_slack_message_is_shown_with_all_its_lines():
    message = {
        "text": "Drift",
        "blocks": [{"type": "header"}, {"type": "section", "text": {"text": "*What*\none\ntwo"}}, {"type": "context"}],
    }
    assert slack_text(message) == ["Slack: Drift", "    What", "    one", "    two"]
