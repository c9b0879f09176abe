"""`driftloop replay` with a question: its answer, by how many processes ever, interrupted, and gone on from."""

import json
import os
import signal
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from sklearn.dummy import DummyClassifier

from inference.errors import SnapshotError
from inference.event import LABEL, own_event
from inference.log import open_log
from inference.versions import Feature, Repository, Schema, Version
from streaming.assemble import open_replay
from streaming.backtest.command import Wanted, replay_events, replay_table
from streaming.cli import main
from streaming.settings import load_settings
from streaming.testing import prediction, promotion

ROWS, CHANGE = 6000, 3000
CONFIG = """
log: log.db
repository: models
models:
  default/a: &how
    window: {size: 100, slide: 20}
    limits: [{kind: evidently, test: ks, threshold: 1e-6}]
    errors: {size: 50, slide: 10}
    governor: {confirm: 1, of: 1, min_samples: 100, cooldown: 1h}
  default/b: *how
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A table of which x is shifted for good from the 3,001st row on, and a log of two models, of which one drifts and gets worse."""
    folder = tmp_path_factory.mktemp("backtest")
    rng = np.random.default_rng(3)

    def rows(count):
        return pd.DataFrame({"x": rng.normal(size=count), "y": rng.exponential(size=count)})

    rows(2000).to_csv(folder / "reference.csv", index=False)
    table = rows(ROWS)
    table.loc[CHANGE:, "x"] += 2.0
    table.assign(when=pd.Timestamp("2026-10-01", tz="UTC") + pd.to_timedelta(np.arange(ROWS), unit="h")).to_parquet(folder / "t.parquet")
    (folder / "known.csv").write_text(f"name,from\nshift,{CHANGE + 1}\n")
    (folder / "driftloop.yaml").write_text(CONFIG)
    write_log(folder, rng)
    return folder


def write_log(folder, rng):
    sample = {"x": rng.normal(size=300), "prediction": rng.choice(["0", "1"], 300)}
    pyarrow.parquet.write_table(pyarrow.table(sample), folder / "r.parquet")
    joblib.dump(DummyClassifier().fit([[0.0]], [0]), folder / "model.joblib")
    schema = Schema((Feature("x", "numeric"),), "categorical", "y")
    log = open_log(str(folder / "log.db"))
    for model, change in (("default/a", 700), ("default/b", 10**6)):
        written = Version(model, "1", Path(), schema)
        Repository(folder / "models").write(written, model_file=folder / "model.joblib", reference_file=folder / "r.parquet")
        events = [promotion(model, "1")]
        for number in range(1200):
            answer = int(rng.integers(2))
            events += prediction(model, f"p{number}", [[float(rng.normal() + 2.0 * (number >= change))]], [answer])
            truth = 1 - answer if number >= change + 100 and rng.random() < 0.7 else answer
            told = {"prediction_id": f"p{number}", "labels": [str(truth)]}
            events.append(own_event(LABEL, told, model=model, source="t", id_=f"l{number}", now=0.0))
        for start in range(0, len(events), 500):
            log.append(events[start : start + 500])
    log.close()


def answer_of(capsys, *options):
    code = main(["replay", *map(str, options), "--json"])
    *lines, last = capsys.readouterr().out.splitlines()
    return code, lines, json.loads(last)


def timeless(answer):
    return {name: value for name, value in answer.items() if name not in ("seconds", "events_per_second", "calibration_seconds")}


def of_table(files):
    return ["--table", files / "t.parquet", "--reference", files / "reference.csv", "--time", "when", "--known-drifts", files / "known.csv"]


def test_the_answer_on_a_table(files, capsys):
    tries = ["--try", "limit.false_alarms=1 per 20k events,1 per 1M events", "--workers", "1"]
    code, lines, told = answer_of(capsys, *of_table(files), *tries)
    assert (code, lines, told["events"]) == (0, [], ROWS)
    (alarm,) = told["alarms"]
    assert CHANGE < alarm["event"] <= CHANGE + 20
    assert (alarm["known_drift"], alarm["decision"], alarm["findings"][0]["feature"]) == ("shift", "retrain", "x")
    (known,) = told["known_drifts"]
    assert (known["found"], known["delay_events"], known["alarm"]) == (True, alarm["event"] - CHANGE - 1, 0)
    assert known["delay_seconds"] == 3600.0 * known["delay_events"]
    days = pytest.approx(2999 / 24, abs=1e-5)
    assert told["false_alarms"] == {"count": 0, "per_30d": 0.0, "per_100k_events": 0.0, "days": days, "events": CHANGE}
    assert told["span"]["first_text"].startswith("2026-10-01T00:00:00")
    assert [one["baseline"] for one in told["tried"]] == [True, False, False]
    assert [one["found"] for one in told["tried"]] == [1, 1, 1]
    assert any(one["pareto"] for one in told["tried"])
    assert yaml.safe_load(told["proposal"]["yaml"])["models"]["table/replay"]["limits"][0]["kind"] == "budget"
    series = told["timeline"]["table/replay"][""]
    (x,) = [one for one in series["features"] if one["feature"] == "x"]
    assert len(x["score"]) == len(x["limit"]) == len(series["time"]) == len(series["event"]) == len(series["over"])
    assert [event for event, over in zip(series["event"], series["over"], strict=True) if over] == [alarm["event"]]
    (evidence,) = told["evidence"]
    shares = evidence["features"][0]
    assert (evidence["alarm"], shares["feature"], shares["kind"], len(shares["window"]["edges"])) == (0, "x", "numeric", 21)
    assert sum(shares["reference"]["share"]) == pytest.approx(1.0)
    assert (told["interrupted"], told["injected"], told["unreadable"]) == (False, [], {"count": 0, "places": []})


def test_settings_side_by_side_say_what_they_say_one_by_one(files, capsys):
    tries = ["--try", "limit.false_alarms=1 per 20k events,1 per 1M events"]
    one, two = (timeless(answer_of(capsys, *of_table(files), *tries, "--workers", count)[2]) for count in (1, 2))
    assert one == two


def test_the_answer_on_a_log_and_models_side_by_side(files, capsys):
    config = ["--config", files / "driftloop.yaml"]
    code, lines, told = answer_of(capsys, *config, "--workers", 1)
    replay = open_replay(load_settings(files / "driftloop.yaml"), None)
    outcomes = [*replay]
    assert (code, len(lines)) == (0, len(outcomes))
    assert {name: told[name] for name in replay.summary()} == replay.summary()
    assert {alarm["model"] for alarm in told["alarms"]} == {"default/a"}
    of_models = [(one["model"], one["predictions"], one["labels"]) for one in told["models"]]
    assert of_models == [("default/a", 1200, 1200), ("default/b", 1200, 1200)]
    assert told["alarm_before_fall"] == {"default/a": True, "default/b": None}
    points = told["accuracy"]["default/a"]
    assert (points[0]["accuracy"], points[-1]["labels"]) == (1.0, 1200)
    assert points[-1]["accuracy"] == pytest.approx(0.3, abs=0.15)
    assert told["false_alarms"]["count"] == len(told["alarms"])
    code, lines, both = answer_of(capsys, *config, "--workers", 2)
    assert timeless(both) == timeless(told)
    assert len(lines) == len(outcomes)


def test_an_injection_is_told_of_loudly(files, capsys):
    options = ["--config", files / "driftloop.yaml", "--inject", "default/b x: shift 2sd from 500", "--workers", 1]
    _, _, told = answer_of(capsys, *options)
    (known,) = told["known_drifts"]
    assert (known["model"], known["found"], known["injected"]) == ("default/b", True, True)
    assert told["injected"] == ["default/b x: shift 2sd from 500"]
    assert "not the past as it was" in told["notes"][0]
    assert main(["replay", *map(str, options)]) == 0
    text = capsys.readouterr().out
    assert "NOT THE PAST AS IT WAS" in text
    assert "injected default/b x: shift 2sd from 500" in text
    assert main(["replay", *map(str, options[:2]), "--inject", "default/b z: shift 2sd from 500", "--workers", "1"]) == 2
    assert "default/b has no feature 'z'" in capsys.readouterr().err


class Interrupting:
    """Prints nowhere, and interrupts the replay with the first alarm."""

    def __init__(self):
        self.lines = []

    def __call__(self, line):
        self.lines.append(line)
        alarms = [known for known in self.lines if '"action":"retrain"' in known or known.startswith("alarm at")]
        if len(alarms) == 1 and alarms[0] is line:
            os.kill(os.getpid(), signal.SIGINT)


def whole(replay, **more):
    said = []
    code = replay(Wanted(say=said.append, as_json=True, **more))
    return code, timeless(json.loads(said[-1]))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupted_replay_tells_what_is_known_and_is_gone_on_from(files, workers):
    def replay(wanted):
        return replay_events(files / "driftloop.yaml", wanted)

    more = {"workers": workers, "tries": ("window.size=60,200",) if workers == 1 else ()}
    code, undisturbed = whole(replay, **{**more, "workers": 1})
    assert (code, undisturbed["interrupted"]) == (0, False)
    say = Interrupting()
    assert replay(Wanted(say=say, as_json=True, **more)) == 130
    known = json.loads(say.lines[-1])
    assert known["interrupted"]
    assert known["notes"][0].startswith("interrupted")
    states = [*files.glob(".driftloop-replay-*.state")]
    assert len(states) in (1, 2)
    assert workers == 2 or 0 < known["events"] < undisturbed["events"]
    code, resumed = whole(replay, resume=True, **more)
    assert (code, resumed) == (0, undisturbed)
    assert [*files.glob(".driftloop-replay-*")] == []


def test_a_table_that_was_interrupted_is_gone_on_from(files, monkeypatch):
    monkeypatch.setattr("streaming.sources.frames.CHUNK", 1000)

    def replay(wanted):
        return replay_table(files / "t.parquet", files / "reference.csv", wanted, time="when")

    more = {"workers": 1, "known_drifts": files / "known.csv"}
    _, undisturbed = whole(replay, **more)
    say = Interrupting()
    assert replay(Wanted(say=say, **more)) == 130
    assert "interrupted: this is what is known so far" in say.lines[-1]
    assert whole(replay, resume=True, **more) == (0, undisturbed)


def test_a_state_that_is_damaged_is_told_of(files, monkeypatch):
    monkeypatch.setattr("streaming.sources.frames.CHUNK", 500)

    def replay(wanted):
        return replay_table(files / "t.parquet", files / "reference.csv", wanted)

    assert replay(Wanted(say=Interrupting(), workers=1)) == 130
    (state,) = files.glob(".driftloop-replay-*.state")
    content = state.read_bytes()
    state.write_bytes(content[:-10] + bytes(10))
    with pytest.raises(SnapshotError, match=r"damaged.*; delete it and the replay begins anew"):
        replay(Wanted(resume=True, workers=1))
    # Whoever asks something else, or does not want to go on, never meets it.
    assert replay(Wanted(say=print, resume=True, workers=1, injections=["x: shift 1 from 5"])) == 0
    assert replay(Wanted(say=print, workers=1)) == 0
    assert not state.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--table", "t.csv", "--known-drifts", "k.csv"], "--table needs --reference FILE"),
        (["--table", "t.csv", "--reference", "r.csv", "--model", "a/b", "--workers", "1"], "--model is not for --table FILE"),
        (["--keep-reference", "--resume"], "--keep-reference is for --table FILE"),
        (["--workers", "-1"], "--workers must be at least 1, not -1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, says, capsys):
    assert main(["replay", *options]) == 2
    assert says in capsys.readouterr().err


def test_a_drift_told_by_time_needs_a_table_with_times(files, tmp_path, capsys):
    (tmp_path / "known.csv").write_text("name,from\nshift,2026-10-03\n")
    command = ["replay", "--table", str(files / "t.parquet"), "--reference", str(files / "reference.csv")]
    command += ["--known-drifts", str(tmp_path / "known.csv")]
    assert main(command) == 2
    assert "name the column of the rows' times with --time" in capsys.readouterr().err
