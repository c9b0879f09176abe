"""Replay of a table: alarms at the row where the verdict fell, a new reference behind each, and the same by the command."""

import json
import textwrap

import numpy as np
import pandas as pd
import pytest

from streaming.assemble import open_table
from streaming.cli import main
from streaming.core.monitor import Monitor
from streaming.core.reference import prepare
from streaming.core.window import Rows
from streaming.table_replay import DEFAULT_SPEC
from streaming.tables import read_tables

ROWS, CHANGE = 6000, 3000


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Quiet rows as the reference, and rows of which x is shifted for good from the 3,001st on."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(3)

    def rows(count):
        return pd.DataFrame({"x": rng.normal(size=count), "y": rng.exponential(size=count), "name": rng.choice(["a", "b", "c"], count)})

    rows(2000).to_csv(folder / "reference.csv", index=False)
    table = rows(ROWS)
    table.to_csv(folder / "quiet.csv", index=False)
    table.loc[CHANGE:, "x"] += 2.0
    table.assign(when=np.arange(ROWS) * 60.0).to_parquet(folder / "events.parquet")
    return folder


def test_a_change_alarms_once_within_a_few_rows_and_the_rows_behind_it_become_the_reference(files):
    replay = open_table(files / "events.parquet", files / "reference.csv", ignore=["when"])
    alarms = list(replay)
    assert len(alarms) == 1
    assert CHANGE < alarms[0].event <= CHANGE + 20
    assert [(finding.feature, finding.signal) for finding in alarms[0].findings] == [("x", "level up")]
    assert replay.events == ROWS


def test_quiet_rows_alarm_never(files):
    assert list(open_table(files / "quiet.csv", files / "reference.csv")) == []


def test_a_reference_that_is_kept_alarms_once_as_long_as_the_change_is_there(files):
    replay = open_table(files / "events.parquet", files / "reference.csv", time="when", keep_reference=True)
    assert [CHANGE < alarm.event <= CHANGE + 20 for alarm in replay] == [True]
    assert replay.alarms[0].time == (replay.alarms[0].event - 1) * 60.0


def test_with_a_reference_that_is_kept_each_incident_alarms_once(files, tmp_path):
    table = pd.read_parquet(files / "events.parquet").drop(columns="when")
    pd.concat([table, table, table.iloc[:CHANGE]]).to_csv(tmp_path / "back.csv", index=False)
    replay = open_table(tmp_path / "back.csv", files / "reference.csv", keep_reference=True)
    events = [alarm.event for alarm in replay]
    assert [CHANGE < events[0] <= CHANGE + 20, ROWS + CHANGE < events[1] <= ROWS + CHANGE + 20, len(events)] == [True, True, 2]
    # The monitor sees each row once, also behind an alarm.
    tables = read_tables(tmp_path / "back.csv", files / "reference.csv")
    reference = prepare("table/replay", "1", tables.schema, tables.reference)
    rows = Rows.of(reference.columns, [tables.rows[column.name] for column in reference.columns], range(len(tables.times)), tables.times)
    said = list(Monitor(DEFAULT_SPEC, reference, 0).take(rows))
    assert [alarm.verdict for alarm in replay.alarms] == [verdict for verdict in said if verdict.predictions in events]


def test_a_second_change_is_found_against_the_new_reference(files, tmp_path):
    table = pd.read_parquet(files / "events.parquet").drop(columns="when")
    table = pd.concat([table, table.iloc[:CHANGE]])
    table.to_csv(tmp_path / "twice.csv", index=False)
    events = [alarm.event for alarm in open_table(tmp_path / "twice.csv", files / "reference.csv")]
    assert len(events) == 2
    assert CHANGE < events[0] <= CHANGE + 20
    assert ROWS < events[1] <= ROWS + 20


def test_the_command_ends_with_one_json_object(files, capsys):
    command = ["replay", "--table", str(files / "events.parquet"), "--reference", str(files / "reference.csv"), "--time", "when"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"events", "alarms", "seconds", "events_per_second", "calibration_seconds"} <= told.keys()
    assert told["events"] == ROWS
    (alarm,) = told["alarms"]
    assert CHANGE < alarm["event"] <= CHANGE + 20
    (finding,) = alarm["findings"]
    assert (finding["feature"], finding["detector"], finding["limit"]) == ("x", "cusum", 1.0)
    assert finding["score"] >= 1.0
    assert (finding["signal"], finding["direction"], finding["what"], finding["share"]) == ("level up", "up", "mean", 1.0)
    assert abs(finding["since"] - (CHANGE + 1)) <= 3, "the row, from 1, at which the change began"
    reference = pd.read_csv(files / "reference.csv")["x"]
    after = pd.read_parquet(files / "events.parquet")["x"][finding["since"] - 1 : alarm["event"]]
    assert (finding["before"], finding["after"]) == (pytest.approx(reference.mean()), pytest.approx(after.mean()))
    assert {"what": "median", "before": pytest.approx(reference.median()), "after": pytest.approx(after.median())} in finding["moved"]
    assert 0 < told["calibration_seconds"] < told["seconds"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"alarm at event {alarm['event']}: x level up" in out
    assert f"mean {finding['before']:.3g} -> {finding['after']:.3g} (up), since event {finding['since']}, 100 %)" in out
    assert f"{ROWS} events, 1 alarm;" in out


CONFIG = """
models:
  default/m:
    window: {size: 200, slide: 50}
    limits:
      - {kind: evidently, test: ks, threshold: 1e-9}
    governor: {confirm: 2, of: 3}
"""


def test_a_configuration_says_how_it_is_judged(files, tmp_path):
    (tmp_path / "driftloop.yaml").write_text(CONFIG)
    replay = open_table(files / "events.parquet", files / "reference.csv", ignore=["when"], config=tmp_path / "driftloop.yaml")
    (alarm,) = list(replay)
    assert alarm.event % 50 == 0
    assert CHANGE + 50 < alarm.event <= CHANGE + 200
    assert alarm.findings[0].test == "ks"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--table", "t.csv"], "--table needs --reference FILE"),
        (["--table", "t.csv", "--reference", "r.csv", "--from-log", "x"], "--table or --from-log, not both"),
        (["--keep-reference"], "--keep-reference is for --table FILE"),
        (["--table", "none.csv", "--reference", "r.csv"], "r.csv: there is no such file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, says, capsys):
    assert main(["replay", *options]) == 2
    assert says in capsys.readouterr().err


def test_a_budget_in_time_needs_times(files, tmp_path, capsys):
    text = textwrap.dedent(CONFIG).replace("kind: evidently, test: ks, threshold: 1e-9", "kind: budget, false_alarms: 1 per 30d")
    (tmp_path / "driftloop.yaml").write_text(text)
    command = ["replay", "--config", str(tmp_path / "driftloop.yaml"), "--reference", str(files / "reference.csv")]
    assert main([*command, "--table", str(files / "quiet.csv")]) == 2
    assert "name their column with --time" in capsys.readouterr().err
    assert main([*command, "--table", str(files / "events.parquet"), "--time", "when"]) == 0
    assert "1 alarm" in capsys.readouterr().out
