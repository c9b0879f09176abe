"""Event time from the log to the verdict: what requests say of when they occurred, on a log and in a table."""

import json
import math
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as altered

from inference.event import now_text, seconds_of
from inference.log import Record
from inference.versions import Feature, Schema
from streaming.cli import main
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import EvidentlyLimit
from streaming.core.monitor import MonitorSpec
from streaming.core.reference import prepare
from streaming.core.segments import Segments
from streaming.core.time_window import TimeWindow
from streaming.core.verdict import Decision, Verdict
from streaming.core.view import View
from streaming.core.window import CountWindow
from streaming.replay import as_text
from streaming.testing import prediction, promotion, records


@given(st.datetimes(datetime(1950, 1, 1), datetime(2200, 1, 1)))
def test_a_time_that_was_written_is_read_to_the_microsecond(time):
    seconds = time.replace(tzinfo=UTC).timestamp()
    assert seconds_of(now_text(seconds)) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-23T10:11:36.664160349Z", 1795428696.66416),
        ("2026-11-23T10:11:36Z", 1795428696.0),
        ("2026-11-23T11:11:36.5+01:00", 1795428696.5),
        ("2026-11-23T10:11:36", math.nan),
        ("2026-11-23", math.nan),
        ("yesterday", math.nan),
        ("2026-02-30T10:11:36Z", math.nan),
        ("", math.nan),
    ],
)
def test_what_kserve_writes_is_read_and_what_tells_no_moment_is_none(text, seconds):
    assert seconds_of(text) == pytest.approx(seconds, nan_ok=True)


SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "categorical", "y")
KS = EvidentlyLimit("e", "ks", 1e-6, columns=("x",))


def reference(model, version):
    rng = np.random.default_rng(0)
    cells = {"x": list(rng.normal(size=200)), "c": ["a", "b"] * 100, "prediction": ["0", "1"] * 100}
    return prepare(model, version, SCHEMA, cells)


def fleet(spec):
    return Fleet({"ns/a": spec}, reference, live=lambda model: None, annotation="driftloop.io/model-version")


def log(occurred, shift=0.0, start=1e6):
    """A promotion, then one prediction a second; `occurred` seconds after `start` by its request."""
    rng = np.random.default_rng(1)
    events = [promotion("ns/a", "1")]
    for number, when in enumerate(occurred):
        x = float(rng.normal()) + (shift if number >= len(occurred) // 2 else 0.0)
        request, response = prediction("ns/a", f"p{number}", [[x, "ab"[number % 2]]], ["0"])
        events += [altered(request, time="" if when is None else now_text(start + when)), response]
    made = records(events)
    return [Record(one.partition, one.offset, start + one.offset / 2.0, one.event) for one in made]


def verdicts(outcomes):
    return [one for one in outcomes if isinstance(one, Verdict)]


TIMED = MonitorSpec(TimeWindow(30.0, 10.0, lateness=5.0, min_rows=5), (KS,), Governor(1, 1))


def test_windows_of_time_go_by_the_times_of_the_requests():
    # Each prediction occurred a minute before it was logged, and every third 3 seconds before its neighbours.
    occurred = [number - 60.0 - 3.0 * (number % 3 == 0) for number in range(120)]
    told = verdicts(fleet(TIMED).feed(log(occurred)))
    slides = [1e6 + slide for slide in range(-50, 60, 10)]
    assert len(told) == len(slides)
    for verdict, slide in zip(told, slides, strict=True):
        inside = [number for number, when in enumerate(occurred) if slide - 30.0 <= 1e6 + when < slide]
        assert (verdict.window.first_offset, verdict.window.last_offset) == (2 + 2 * inside[0], 2 + 2 * inside[-1])
        # Due with the response of the first prediction that is 5 seconds past the slide.
        due = next(number for number, when in enumerate(occurred) if 1e6 + when >= slide + 5.0)
        assert verdict.due == (2 + 2 * due, 1e6 + 1.0 + due)


def test_a_request_without_a_time_occurred_when_it_was_logged():
    straight = verdicts(fleet(TIMED).feed(log([number + 1.0 for number in range(60)])))
    untold = verdicts(fleet(TIMED).feed(log([None] * 60)))
    assert untold == straight != []


def test_late_predictions_are_counted_in_the_status_across_versions():
    occurred = [number - (20.0 if number in (30, 40) else 0.0) for number in range(60)]
    running = fleet(TIMED)
    made = log(occurred)
    running.feed(made)
    status = running.status()["models"]["ns/a"]
    assert status["counts"]["late"] == 2
    assert status["windows"] == [{"window": "", "segment": "", "predictions": 52, "in_window": 29}]
    running.feed([Record(0, len(made), made[-1].timestamp, promotion("ns/a", "2"))])
    assert running.status()["models"]["ns/a"]["counts"]["late"] == 2
    anew = fleet(TIMED)
    anew.restore(0, running.state(0))
    assert anew.status() == running.status()


def test_a_decision_tells_of_the_window_and_the_segment_that_decided():
    views = View("long", TimeWindow(60.0, 20.0, min_rows=5), (KS,)), View("short", CountWindow(20, 5), (KS,))
    spec = MonitorSpec(views[0].window, views[0].limits, Governor(1, 1), "long", views[1:], Segments("c", 2, 50))
    outcomes = fleet(spec).feed(log(range(200), shift=8.0))
    decision = next(one for one in outcomes if isinstance(one, Decision) and one.action == "retrain")
    assert (decision.verdict.of_window, decision.verdict.segment) == ("short", "")
    assert len(decision.evidence["x"]) == 20
    assert decision.reason.startswith("window short: over the limit in 1 of the last 1 windows")
    assert abs(decision.drift_began.first_offset - 2 - 200) <= 4
    of_segment = next(one for one in verdicts(outcomes) if one.drift and one.segment)
    line = as_text(of_segment)
    assert f"of window {of_segment.of_window}, {of_segment.segment} at prediction" in line
    held = [one for one in outcomes if isinstance(one, Decision) and one.action == "hold"]
    assert {(one.verdict.of_window, one.verdict.segment) for one in held} == {
        (window, segment) for window in ("long", "short") for segment in ("", "c=a", "c=b")
    }, "each says once that the run is active"
    assert {part["segment"] for part in fleet_status(spec)} == {"", "c=a", "c=b"}


def fleet_status(spec):
    running = fleet(spec)
    running.feed(log(range(5)))
    return running.status()["models"]["ns/a"]["windows"]


def test_a_window_that_is_no_longer_configured_keeps_no_incident_open():
    view = View("old", CountWindow(20, 5), (KS,))
    running = fleet(MonitorSpec(view.window, view.limits, Governor(1, 1), "old"))
    running.feed(log(range(200), shift=8.0))
    anew = fleet(MonitorSpec(view.window, view.limits, Governor(1, 1), "new"))
    (notice,) = anew.restore(0, running.state(0))
    assert notice.kind == "restarted"
    before, after = (one.state(0)["models"]["ns/a"]["governor"] for one in (running, anew))
    assert before["others"][0]["window"] == "old"
    assert after == {**before, "others": []}


# A table

CONFIG = """
models:
  default/m:
    window: {length: 200s, slide: 50s, lateness: 20s}
    limits:
      - {kind: evidently, test: ks, threshold: 1e-9}
    governor: {confirm: 1, of: 1}
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(3)
    pd.DataFrame({"x": rng.normal(size=1000)}).to_csv(folder / "reference.csv", index=False)
    x = rng.normal(size=2000)
    x[1000:] += 3.0
    pd.DataFrame({"when": np.arange(2000.0) + 1e9, "x": x}).to_csv(folder / "events.csv", index=False)
    (folder / "driftloop.yaml").write_text(CONFIG)
    return folder


def test_a_table_is_judged_by_its_time_column(tables, capsys):
    command = ["replay", "--table", "events.csv", "--reference", "reference.csv", "--config", "driftloop.yaml"]
    command = [str(tables / word) if "." in word else word for word in command]
    assert main(command) == 2
    assert "a window of a stretch of time needs the rows' times: name their column with --time" in capsys.readouterr().err
    assert main([*command, "--time", "when", "--json", "--keep-reference"]) == 0
    (alarm,) = json.loads(capsys.readouterr().out.splitlines()[-1])["alarms"]
    # A slide at a full 50 seconds, that falls due 20 seconds later.
    assert 1021 <= alarm["event"] <= 1121
    assert (alarm["event"] - 21) % 50 == 0
