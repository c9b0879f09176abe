"""driftloop calibrate: what limits see and how often they cry wolf, from a reference, a repository, a quiet table or a quiet log."""

import json
from contextlib import closing

import numpy as np
import pandas
import pytest

from inference.log import open_log
from inference.versions import Feature, Repository, Schema, Version
from streaming.cli import main
from streaming.testing import prediction

CONFIG = """\
log: log.db
repository: models
models:
  ns/m:
    window: {size: 200, slide: 20}
    limits:
"""


def columns(seed, rows, shift=0.0, drift=0.0):
    rng = np.random.default_rng(seed)
    return {
        "age": rng.normal(40.0, 10.0, rows) + shift * 10.0 + np.linspace(0.0, 10.0 * drift, rows),
        "height": np.where(rng.uniform(size=rows) < 0.02, np.nan, rng.normal(size=rows)),
        "letter": rng.choice(["a", "b", "c"], rows),
        "prediction": rng.normal(size=rows),
    }


def written(path, table):
    pandas.DataFrame(table).to_csv(path, index=False)
    return path


def configured(tmp_path, *limits):
    path = tmp_path / "driftloop.yaml"
    path.write_text(CONFIG + "".join(f"      - {limit}\n" for limit in limits))
    return path


def deployed(root):
    """Version 1 of ns/m, with a reference of 600 rows."""
    (root / "files").mkdir(parents=True)
    model, reference = root / "files" / "model.joblib", root / "files" / "reference.parquet"
    model.write_bytes(b"no model")
    rng = np.random.default_rng(10)
    pandas.DataFrame(rng.normal(size=(600, 3)), columns=["x", "y", "prediction"]).to_parquet(reference)
    schema = Schema((Feature("x", "numeric"), Feature("y", "numeric")), "numeric", "t")
    repository = Repository(root)
    repository.write(Version("ns/m", "1", root, schema), model_file=model, reference_file=reference)
    repository.promote("ns/m", "1", expected=None)


def calibrate(capsys, *arguments):
    assert main(["calibrate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_table_alone_is_enough_and_every_column_is_told_what_is_seen_of_it(tmp_path, capsys):
    reference = written(tmp_path / "reference.csv", columns(1, 2000))
    report = calibrate(capsys, "--reference", reference)
    (limit,) = report["limits"]
    assert (limit["name"], limit["kind"], limit["false_alarms"]["per_100k_events"]) == ("budget", "budget", 1.0)
    assert limit["false_alarms"]["per_30d"] is None
    seen = {column["column"]: column["sees"] for column in limit["columns"]}
    assert set(seen) == {"age", "height", "letter", "prediction"}
    assert set(seen["age"]) == {"level", "spread", "missing"}
    assert set(seen["letter"]) == {"category", "unseen", "missing"}
    shift = seen["age"]["level"]["within"]
    assert 0.3 < shift["100"] < 0.8 > shift["1000"] > shift["10000"] > 0.05
    assert limit["pairs"]["count"] == 3
    assert report["notes"] == []
    assert calibrate(capsys, "--reference", reference, "--rate", 100)["limits"][0]["false_alarms"]["per_30d"] == pytest.approx(
        2592.0, rel=0.01
    )
    assert main(["calibrate", "--reference", str(reference)]) == 0
    out = capsys.readouterr().out
    assert "at most 1 per 100,000 events" in out and "shift, sd" in out and "letter" in out
    assert len(out.splitlines()) < 20


def test_an_explicit_limit_is_told_how_often_it_would_cry_wolf_and_what_would_hold(tmp_path, capsys):
    config = configured(
        tmp_path,
        "{kind: evidently, name: naive, test: ks}",
        "{kind: evidently, name: strict, test: ks, threshold: 1.0e-9}",
        "{kind: evidently, name: kept, test: ks, false_alarms: 1 per 20k events}",
        "{kind: evidently}",
    )
    reference = written(tmp_path / "reference.csv", columns(2, 2000))
    report = calibrate(capsys, "--reference", reference, "--config", config, "--rate", 10)
    naive, strict, kept, auto = report["limits"]
    assert naive["false_alarms"]["per_100k_events"] > 100.0
    assert naive["false_alarms"]["per_30d"] == pytest.approx(naive["false_alarms"]["per_100k_events"] * 259.2, rel=0.01)
    assert strict["false_alarms"]["per_100k_events"] < 0.5
    assert kept["false_alarms"]["per_100k_events"] < 5.0
    assert kept["budget_events"] == naive["budget_events"] == 20_000.0
    assert 1e-7 < naive["holding"]["ks"] < 0.005
    assert all(column["threshold"] == 0.05 for column in naive["columns"])
    assert all(column["threshold"] == column["holding"] < 0.05 for column in kept["columns"])
    assert {column["column"]: column["test"] for column in auto["columns"]}["letter"] == "jensenshannon"
    assert main(["calibrate", "--reference", str(reference), "--config", str(config), "--rate", "10"]) == 0
    out = capsys.readouterr().out
    assert "limit 'naive' (evidently)\n  this would cry wolf about" in out
    assert "times in 30 days" in out
    assert "one threshold that holds it on every column: ks" in out


def test_a_detector_is_fed_quiet_rows_and_its_alarms_are_counted(tmp_path, capsys):
    config = configured(
        tmp_path,
        "{kind: detector, name: nervous, detector: {kind: page_hinkley, threshold: 3.0, delta: 0.005}, columns: [age]}",
        "{kind: detector, name: calm, detector: {kind: adwin, delta: 1.0e-6}, columns: [age]}",
    )
    reference = written(tmp_path / "reference.csv", columns(3, 1000))
    nervous, calm = calibrate(capsys, "--reference", reference, "--config", config)["limits"]
    assert nervous["false_alarms"]["per_100k_events"] > 50.0
    assert calm["alarms"] == 0 and calm["events"] == 100_000
    assert main(["calibrate", "--reference", str(reference), "--config", str(config)]) == 0
    assert "no false alarm in 100,000 quiet events" in capsys.readouterr().out


def test_a_quiet_table_counts_alarms_and_takes_the_references_place(tmp_path, capsys):
    config = configured(
        tmp_path, "{kind: evidently, test: wasserstein, threshold: 0.15}", "{kind: budget, false_alarms: 1 per 100k events}"
    )
    reference = written(tmp_path / "reference.csv", columns(4, 2000))
    as_it_was = written(tmp_path / "quiet.csv", {"at": np.arange(4000) * 0.5 + 1.7e9, **columns(5, 4000)})
    moved = written(tmp_path / "moved.csv", {"at": np.arange(4000) * 0.5 + 1.7e9, **columns(5, 4000, shift=0.5)})
    common = ("--reference", reference, "--config", config, "--time", "at", "--quiet")
    plain, other = calibrate(capsys, *common, as_it_was), calibrate(capsys, *common, moved)
    assert plain["events_per_second"] == pytest.approx(2.0, rel=0.01)
    assert plain["history"] == {"source": str(as_it_was), "events": 4000}
    assert plain["limits"][1]["in_history"] == 0
    # What has moved since the reference was taken alarms once in each window's length: here 20 of 200 rows.
    assert other["limits"][0]["in_history"] == 20
    assert other["limits"][0]["false_alarms"]["per_100k_events"] == pytest.approx(500.0, rel=0.05)
    assert other["limits"][0]["holding"]["wasserstein"] > 0.5 > plain["limits"][0]["holding"]["wasserstein"]


def test_the_live_versions_reference_and_a_quiet_log(tmp_path, capsys):
    config = configured(tmp_path, "{kind: evidently, test: ks}")
    assert main(["calibrate", "--config", str(config)]) == 2
    assert "no live version of ns/m" in capsys.readouterr().err
    deployed(tmp_path / "models")
    report = calibrate(capsys, "--config", config)
    assert (report["model"], report["version"], report["reference"]["rows"]) == ("ns/m", "1", 600)
    assert any("600 rows" in note for note in report["notes"])
    rng = np.random.default_rng(6)
    events = [prediction("ns/m", str(number), [rng.normal(size=2).tolist()], [float(rng.normal())], version="1") for number in range(500)]
    with closing(open_log(str(tmp_path / "log.db"))) as event_log:
        event_log.append([event for both in events for event in both])
    report = calibrate(capsys, "--config", config, "--quiet", tmp_path / "log.db")
    assert report["history"]["events"] == 500
    assert report["limits"][0]["in_history"] >= 1


def test_a_reference_that_drifts_depends_or_is_short_is_told(tmp_path, capsys):
    drifting = calibrate(capsys, "--reference", written(tmp_path / "drifting.csv", columns(7, 3000, drift=1.0)))
    assert drifting["reference"]["drifting"] == ["age"]
    assert any("drifts" in note and "age" in note for note in drifting["notes"])
    short = calibrate(capsys, "--reference", written(tmp_path / "short.csv", columns(8, 200)))
    assert any("200 rows" in note for note in short["notes"])
    swinging = np.cumsum(np.random.default_rng(9).normal(size=(2, 2000)), axis=1)
    slow = {"x": swinging[0] - 0.9 * np.roll(swinging[0], 30), "prediction": swinging[1]}
    notes = calibrate(capsys, "--reference", written(tmp_path / "slow.csv", slow))["notes"]
    assert any("depend on each other" in note for note in notes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--reference", "absent.csv"], "absent.csv"),
        (["--reference", "absent.csv", "--rate", "0"], "--rate must be a positive number"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *arguments]) == 2
    assert says in capsys.readouterr().err
