"""Tables: types inferred, what is no feature left out with a note, and errors that say what does not fit."""

import gzip

import numpy as np
import pandas as pd
import pytest

from inference.errors import SettingsError
from streaming.tables import read_tables


def frame(rows=200, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "number": rng.normal(size=rows),
            "count": rng.poisson(3, rows),
            "name": rng.choice(["a", "b"], rows),
            "flag": rng.choice([True, False], rows),
            "prediction": rng.choice(["yes", "no"], rows),
        }
    )


@pytest.fixture
def written(tmp_path):
    def write(frame, name):
        path = tmp_path / name
        if name.endswith(".parquet"):
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False)
        return path

    return write


@pytest.mark.parametrize(
    ("table", "reference"), [("t.csv", "r.csv"), ("t.csv.gz", "r.csv.gz"), ("t.parquet", "r.parquet"), ("t.parquet", "r.csv")]
)
def test_types_are_inferred_from_each_kind_of_file(written, table, reference):
    tables = read_tables(written(frame(50, 1), table), written(frame(), reference))
    assert {feature.name: feature.kind for feature in tables.schema.features} == {
        "number": "numeric",
        "count": "numeric",
        "name": "categorical",
        "flag": "categorical",
    }
    assert tables.schema.prediction == "categorical"
    assert tables.rows["number"].tolist() == frame(50, 1)["number"].tolist()
    assert tables.rows["name"].tolist() == frame(50, 1)["name"].tolist()
    assert set(tables.rows["flag"]) == set(tables.reference["flag"]) == {"0", "1"}
    assert tables.times.tolist() == list(range(50))
    assert tables.notes == []


def test_missing_cells_are_missing(written):
    table = frame(10)
    table["number"] = table["number"].astype(object)
    table.loc[2, "number"] = None
    table.loc[3, "name"] = None
    table.loc[4, "number"] = "n/k"
    tables = read_tables(written(table, "t.csv"), written(frame(), "r.csv"))
    assert np.isnan(tables.rows["number"]).tolist() == [number in (2, 4) for number in range(10)]
    assert tables.rows["name"][3] is None
    assert tables.notes == ["number: 1 values are no numbers and count as missing"]


def test_dates_identifiers_and_row_numbers_are_left_out_and_said_so(written):
    table = frame().assign(
        row=np.arange(200),
        when=pd.date_range("2026-01-01", periods=200, freq="min"),
        id=[f"user-{number}" for number in range(200)],
        more=1,
    )
    reference = table.drop(columns="more")
    tables = read_tables(written(table, "t.parquet"), written(reference, "r.parquet"))
    assert set(tables.rows) == set(frame().columns)
    told = "\n".join(tables.notes)
    for name in ("row is left out: its numbers only rise", "when is left out: it holds dates", "id is left out: its texts hardly repeat"):
        assert name in told
    assert "more: not in the reference" in told


def test_a_time_column_gives_the_times(written):
    for values in (pd.date_range("2026-01-01", periods=200, freq="min"), 1767225600.0 + 60.0 * np.arange(200)):
        path = written(frame().assign(when=values), "t.csv")
        tables = read_tables(path, path, time="when")
        assert tables.times[:2].tolist() == [1767225600.0, 1767225660.0]
        assert "when" not in tables.rows


def test_ignored_columns_may_be_lacking(written):
    table = frame().drop(columns="count")
    tables = read_tables(written(table, "t.csv"), written(frame(), "r.csv"), ignore=["count", "flag"])
    assert set(tables.rows) == {"number", "name", "prediction"}


@pytest.mark.parametrize(
    ("change", "more", "says"),
    [
        (
            lambda table: table.drop(columns=["count", "flag"]),
            {},
            r"lacks the reference's columns count, flag; add them, or leave them out",
        ),
        (lambda table: table, {"time": "when"}, r"there is no column 'when' for --time"),
        (lambda table: table, {"ignore": ["nme"]}, r"--ignore nme: no such column"),
        (lambda table: table.assign(when=[*range(100), *range(100)]), {"time": "when"}, r"row 101 is older than the one before it"),
        (lambda table: table.assign(when=[None, *range(199)]), {"time": "when"}, r"row 1 has no time"),
        (lambda table: table.assign(when="soon"), {"time": "when"}, r"column 'when' holds no times"),
    ],
)
def test_what_does_not_fit_is_said(written, change, more, says):
    with pytest.raises(SettingsError, match=says):
        read_tables(written(change(frame()), "t.csv"), written(frame(), "r.csv"), **more)


def test_files_that_cannot_be_read_are_named(tmp_path, written):
    good = written(frame(), "r.csv")
    with pytest.raises(SettingsError, match=r"gone\.csv: there is no such file"):
        read_tables(tmp_path / "gone.csv", good)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SettingsError, match=r"bad\.parquet: cannot be read as Parquet"):
        read_tables(tmp_path / "bad.parquet", good)
    (tmp_path / "bad.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")[:-9])
    with pytest.raises(SettingsError, match=r"bad\.csv\.gz: cannot be read as CSV"):
        read_tables(tmp_path / "bad.csv.gz", good)
    (tmp_path / "empty.csv").write_text("a,b\n")
    with pytest.raises(SettingsError, match=r"empty\.csv: has no rows"):
        read_tables(tmp_path / "empty.csv", tmp_path / "empty.csv")
