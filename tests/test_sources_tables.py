"""Tables as a source: chunk by chunk what the whole table says, stretches of them, what can't be read, and the command."""

import json
import tracemalloc
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from sklearn.dummy import DummyClassifier

from inference.errors import SettingsError
from inference.log.embedded import EmbeddedLog
from inference.versions import Feature, Repository, Schema, Version
from streaming.assemble import open_table as open_whole
from streaming.cli import main
from streaming.source_replay import TableSourceReplay
from streaming.sources import frames
from streaming.sources.seam import Stretch
from streaming.sources.table import open_table
from streaming.table_replay import DEFAULT_SPEC
from streaming.tables import read_tables
from streaming.testing import prediction, promotion

ROWS, CHANGE = 6000, 3000
BEGAN = pd.Timestamp("2026-10-01", tz="UTC")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(frames, "CHUNK", 700)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reference of quiet rows, and a table, as CSV and Parquet, of which x is shifted from the 3,001st row on, and back at its end."""
    path = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(3)

    def rows(count):
        texts = rng.choice(["a", "b", "007"], count)
        return pd.DataFrame(
            {"x": rng.normal(size=count), "n": rng.integers(0, 9, count), "name": texts, "prediction": rng.integers(2, size=count)}
        )

    rows(2000).to_csv(path / "reference.csv", index=False)
    table = rows(ROWS)
    table.loc[CHANGE : ROWS - 1000, "x"] += 2.0
    table = table.assign(when=[(BEGAN + pd.Timedelta(minutes=number)).isoformat() for number in range(ROWS)])
    table["n"] = table["n"].astype(object)
    table.loc[100, "n"], table.loc[5000, "n"], table.loc[200, "x"], table.loc[300, "name"] = "many", "few", np.nan, None
    table.to_csv(path / "rows.csv", index=False)
    table.to_csv(path / "rows.csv.gz", index=False)
    table.to_csv(path / "rows.csv.xz", index=False)
    timed = table.assign(when=pd.to_datetime(table["when"]), n=pd.to_numeric(table["n"], errors="coerce"))
    pyarrow.parquet.write_table(pa.Table.from_pandas(timed, preserve_index=False), path / "rows.parquet", row_group_size=1000)
    files = {"model_file": path / "model.joblib", "reference_file": path / "reference.parquet"}
    sample = pd.read_csv(path / "reference.csv").astype({"prediction": str})
    pyarrow.parquet.write_table(pa.Table.from_pandas(sample, preserve_index=False), files["reference_file"])
    joblib.dump(DummyClassifier().fit([[0.0]], [0]), files["model_file"])
    schema = Schema((Feature("x", "numeric"), Feature("n", "numeric"), Feature("name", "categorical")), "categorical", "y")
    repository = Repository(path / "models")
    repository.write(Version("default/m", "1", Path(), schema), **files)
    repository.promote("default/m", "1", expected=None)
    (path / "driftloop.yaml").write_text(CONFIG)
    return path


CONFIG = """
log: events.db
repository: models
state: state
models:
  default/m:
    limits: [{kind: budget, false_alarms: 1 per 100k events}]
    governor: {cooldown: 0}
"""


def joined(source):
    chunks = list(source)
    return {name: np.concatenate([chunk.cells[name] for chunk in chunks]) for name in chunks[0].cells}, np.concatenate(
        [c.times for c in chunks]
    )


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.csv.xz", "rows.parquet"])
@pytest.mark.parametrize("time", ["when", None])
def test_in_chunks_a_table_is_what_it_is_as_a_whole(folder, name, time):
    ignore = [] if time else ["when"]
    whole = read_tables(folder / name, folder / "reference.csv", time=time, ignore=ignore)
    source = open_table(folder / name, folder / "reference.csv", time=time, ignore=ignore, strict=True)
    assert len(chunks := list(source)) > 5 and max(len(chunk.times) for chunk in chunks) <= 700
    cells, times = joined(open_table(folder / name, folder / "reference.csv", time=time, ignore=ignore))
    assert (times == whole.times).all()
    assert cells.keys() == whole.rows.keys()
    for column, values in whole.rows.items():
        assert [repr(one) for one in cells[column]] == [repr(one) for one in values]
    assert (source.notes, source.schema) == (whole.notes, whole.schema)
    assert name == "rows.parquet" or "n: 2 values are no numbers and count as missing" in source.notes


def test_the_alarms_are_those_of_the_table_as_a_whole(folder):
    whole = open_whole(folder / "rows.parquet", folder / "reference.csv", time="when")
    expected = list(whole)
    replay = TableSourceReplay(open_table(folder / "rows.parquet", folder / "reference.csv", time="when"), DEFAULT_SPEC, Stretch())
    assert len(list(replay)) == len(expected) == 2
    plain = [{name: value for name, value in alarm.items() if name != "time"} for alarm in replay.summary()["alarms"]]
    assert plain == whole.summary()["alarms"]
    assert replay.events == ROWS
    told = replay.summary()
    assert whole.summary().keys() <= told.keys()
    assert [alarm["time"] for alarm in told["alarms"]] == [BEGAN.timestamp() + 60.0 * (alarm["event"] - 1) for alarm in told["alarms"]]
    kept = TableSourceReplay(
        open_table(folder / "rows.parquet", folder / "reference.csv", time="when"), DEFAULT_SPEC, Stretch(), keep_reference=True
    )
    assert [alarm.event for alarm in kept] == [
        alarm.event for alarm in open_whole(folder / "rows.parquet", folder / "reference.csv", time="when", keep_reference=True)
    ]


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
@pytest.mark.parametrize(
    ("since", "until", "first", "end"),
    [
        (["2026-10-03"], ["2026-10-04"], 2880, 4320),
        ([], ["2026-10-01T00:10:00Z"], 0, 10),
        (["2026-10-05T03:00:00+00:00"], [], 5940, 6000),
        (["0:5"], ["0:1500"], 5, 1500),
        (["0:2000"], ["2026-10-03"], 2000, 2880),
    ],
)
def test_a_stretch_of_a_table_is_its_rows_of_that_time_or_those_numbers(folder, name, since, until, first, end):
    _, times = joined(open_table(folder / name, folder / "reference.csv", time="when", stretch=Stretch.of(since, until)))
    assert times.tolist() == [BEGAN.timestamp() + 60.0 * number for number in range(first, end)]
    assert list(open_table(folder / name, folder / "reference.csv", time="when", stretch=Stretch.of(["1:0"]))) == []


def test_row_groups_of_another_time_are_not_read(folder, monkeypatch):
    read = []
    original = pyarrow.parquet.ParquetFile.iter_batches

    def iter_batches(self, *arguments, row_groups, **more):
        read.extend(row_groups)
        return original(self, *arguments, row_groups=row_groups, **more)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", iter_batches)
    list(open_table(folder / "rows.parquet", folder / "reference.csv", time="when", stretch=Stretch.of(["2026-10-03"], ["2026-10-04"])))
    assert read == [2, 3, 4]


def test_a_stretch_of_time_needs_times(folder):
    with pytest.raises(SettingsError, match="name their column with --time"):
        open_table(folder / "rows.csv", folder / "reference.csv", ignore=["when"], stretch=Stretch.of(["2026-10-03"]))


def test_what_of_a_table_cannot_be_read_is_told_and_the_rest_goes_on(folder, tmp_path):
    lines = (folder / "rows.csv").read_text().splitlines()
    lines[2] += ",1,2,3"
    lines[1500] += ",1"
    lines[800] = lines[800].rpartition(",")[0] + ","
    lines[801] = lines[801].rpartition(",")[0] + ",soon"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    source = open_table(tmp_path / "a.csv", folder / "reference.csv", time="when")
    _, times = joined(source)
    assert len(times) == ROWS - 4
    told = [(one["place"].removeprefix(f"{tmp_path}/"), one["reason"]) for one in source.unreadable.places]
    assert [place for place, _ in told] == ["a.csv:3", "a.csv: row 799", "a.csv: row 800", "a.csv:1501"]
    assert [reason for _, reason in told] == [
        "expected 5 fields, saw 8",
        "no time in column 'when'",
        "no time in column 'when'",
        told[3][1],
    ]
    with pytest.raises(SettingsError, match=r"a\.csv: cannot be read as CSV"):
        list(open_table(tmp_path / "a.csv", folder / "reference.csv", time="when", strict=True))


def test_a_row_group_and_a_file_that_are_damaged_are_told_and_the_others_read(folder, tmp_path):
    content = bytearray((folder / "rows.parquet").read_bytes())
    group = pyarrow.parquet.ParquetFile(folder / "rows.parquet").metadata.row_group(2).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    content[start : start + 400] = bytes(400)
    (tmp_path / "1.parquet").write_bytes(content)
    (tmp_path / "2.parquet").write_bytes(b"PAR1")
    source = open_table(tmp_path, folder / "reference.csv", time="when")
    _, times = joined(source)
    assert len(times) == ROWS - 1000
    assert source.unreadable.total == 1000 + 1
    assert [one["place"].removeprefix(f"{tmp_path}/") for one in source.unreadable.places] == ["1.parquet: row group 2", "2.parquet"]


def test_a_table_in_several_files_goes_by_their_names_and_rows_out_of_order_end_it(folder, tmp_path):
    table = pd.read_csv(folder / "rows.csv", dtype=str)
    table[:2500].to_csv(tmp_path / "1.csv", index=False)
    table[2500:].to_csv(tmp_path / "2.csv", index=False)
    _, times = joined(open_table(f"file://{tmp_path}/*.csv", folder / "reference.csv", time="when"))
    assert len(times) == ROWS and (np.diff(times) > 0).all()
    (tmp_path / "2.csv").rename(tmp_path / "0.csv")
    with pytest.raises(SettingsError, match=r"row 3501 is older than the one before it by 'when'; sort the rows"):
        joined(open_table(tmp_path, folder / "reference.csv", time="when"))


def test_the_live_version_is_a_reference_too(folder):
    version = Repository(folder / "models").read("default/m", "1")
    source = open_table(folder / "rows.csv", version, time="when")
    cells, _ = joined(source)
    assert [*cells] == ["x", "n", "name", "prediction"]
    assert set(cells["prediction"]) == {"0", "1"}
    assert set(cells["name"]) == {"a", "b", "007", None}
    with pytest.raises(SettingsError, match=r"lacks the features x of default/m version 1"):
        pd.read_csv(folder / "rows.csv").drop(columns="x").to_csv(folder / "less.csv", index=False)
        open_table(folder / "less.csv", version, time="when")


def test_memory_does_not_grow_with_the_rows(folder, tmp_path):
    def peak(copies):
        path = tmp_path / f"{copies}.csv"
        rows = (folder / "rows.csv").read_text().splitlines(keepends=True)
        path.write_text(rows[0] + "".join(rows[1:]) * copies)
        source = open_table(path, folder / "reference.csv", ignore=["when"])
        tracemalloc.start()
        count = sum(len(chunk.times) for chunk in source)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == ROWS * copies
        return most

    assert peak(10) < 1.3 * peak(1) + 1_000_000


# The command


def last(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_replays_a_table_by_the_live_version(folder, capsys):
    command = ["replay", "--config", str(folder / "driftloop.yaml"), "--source", str(folder / "rows.parquet"), "--time", "when"]
    assert main([*command, "--json", "--until", "2026-10-04"]) == 0
    told = last(capsys)
    assert told["events"] == 4320
    assert [CHANGE < alarm["event"] < CHANGE + 60 for alarm in told["alarms"]] == [True]
    assert (told["source"], told["since"], told["until"]) == (str(folder / "rows.parquet"), None, "2026-10-04")
    assert told["unreadable"] == {"count": 0, "places": []}
    assert main(command) == 0
    assert "alarm at event" in capsys.readouterr().out


def test_the_command_records_a_log_and_replays_the_recording_alike(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "driftloop.yaml").write_text(CONFIG.replace("models\n", f"{folder}/models\n", 1))
    log = EmbeddedLog(tmp_path / "events.db")
    rng = np.random.default_rng(5)
    log.append([promotion("default/m", "1")])
    for number in range(3000):
        row = [float(rng.normal(0.0 if number < 2000 else 4.0)), int(rng.integers(9)), str(rng.choice(["a", "b", "007"]))]
        log.append(prediction("default/m", f"p{number}", [row], [int(rng.integers(2))], version="1"))
    log.close()
    monkeypatch.chdir(tmp_path)
    assert main(["replay", "--json"]) == 0
    live = capsys.readouterr().out.splitlines()
    assert main(["record", "--config", "driftloop.yaml", "out.jsonl.zst"]) == 0
    assert "out.jsonl.zst: 6001 events of" in capsys.readouterr().out
    assert main(["replay", "--source", "out.jsonl.zst", "--json"]) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[:-1] == live[:-1] and len(again) > 20
    told = json.loads(again[-1])
    assert (told["events"], told["source"], told["retrain"]) == (6001, "out.jsonl.zst", 1)
    assert main(["replay", "--since", "2100-01-01", "--json"]) == 0
    assert last(capsys)["events"] == 0
    partition = told["alarms"][0]["partition"]
    assert main(["record", "--log", "events.db", "--until", f"{partition}:100", "part.jsonl"]) == 0
    assert "100 events" in capsys.readouterr().out
    assert main(["replay", "--source", "part.jsonl"]) == 0
    assert "100 events" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["replay", "--source", "x.jsonl", "--from-log", "y"], "--source or --from-log, not both"),
        (["replay", "--format", "log"], "--format is for --source URL"),
        (["replay", "--source", "x.jsonl", "--format", "nosuch"], "--format nosuch: must be one of log, recording"),
        (["replay", "--source", "gone.jsonl"], "there is no such file"),
        (["replay", "--source", "events.db", "--reference", "x"], "--reference is for tables"),
        (["replay", "--source", "x", "--model", "a/b", "--format", "recording"], "--model a/b: not configured; there are default/m"),
        (["record", "x.jsonl"], "record needs --config FILE or --log URL"),
        (["record", "--log", "gone.db", "x.jsonl"], "there is no event log"),
    ],
)
def test_words_that_do_not_go_together_are_refused(folder, monkeypatch, capsys, words, says):
    monkeypatch.chdir(folder)
    assert main(words) == 2
    assert says in capsys.readouterr().err
    assert not (folder / "x.jsonl").exists()
