"""Many columns measured together give the numbers that each gives alone, and Evidently's own."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.core import statistics
from streaming.core.columnwise import ColumnwiseKs, ColumnwiseWasserstein
from streaming.core.limits import EvidentlyLimit
from streaming.core.reference import prepare
from streaming.core.window import CountWindow, Rows

SAMPLES = {
    "ties": lambda rng, rows: rng.integers(0, 4, rows).astype(float),
    "continuous": lambda rng, rows: rng.normal(3.0, 2.0, rows),
    "heavy": lambda rng, rows: rng.standard_cauchy(rows),
    "constant": lambda rng, rows: np.full(rows, 2.0),
    "huge": lambda rng, rows: rng.normal(1e12, 1.0, rows),
}


def reference_of(columns):
    """The columns as numeric features, and a constant prediction that has as many rows as the longest."""
    rows = max(len(cells) for cells in columns.values())
    padded = {name: [*cells, *[math.nan] * (rows - len(cells))] for name, cells in columns.items()}
    schema = Schema(tuple(Feature(name, "numeric") for name in columns), "numeric", "t")
    return prepare("default/m", "1", schema, {**padded, "prediction": [1.0] * rows})


def together(columns, windows):
    """The p-values and the distances of both classes."""
    codes = np.array([column.codes(window) for column, window in zip(columns, windows, strict=True)], dtype=np.int32)
    return ColumnwiseKs(columns).scores(codes), ColumnwiseWasserstein(columns).scores(np.array(windows))


@pytest.mark.parametrize("size", [1, 2, 7, 50, 100])
@pytest.mark.parametrize("rows", [1, 2, 50, 120, 1001])
def test_columns_together_give_what_each_gives_alone(rows, size):
    rng = np.random.default_rng(rows * 1000 + size)
    columns = reference_of({name: draw(rng, rows) for name, draw in SAMPLES.items()}).columns[:-1]
    windows = [draw(rng, size) + (0.5 if number % 2 else 0.0) for number, draw in enumerate(SAMPLES.values())]
    p_values, distances = together(columns, windows)
    assert p_values == [statistics.ks(column, window) for column, window in zip(columns, windows, strict=True)]
    alone = [statistics.wasserstein(column, window) for column, window in zip(columns, windows, strict=True)]
    assert distances == pytest.approx(alone, rel=1e-12, abs=1e-15)


VALUES = st.integers(-3, 3).map(float) | st.floats(-100.0, 100.0)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_windows_together_give_what_each_gives_alone(data):
    rows, size, many = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 20)), data.draw(st.integers(1, 4))
    cells = [data.draw(st.lists(VALUES, min_size=rows, max_size=rows)) for _ in range(many)]
    columns = reference_of({f"x{number}": one for number, one in enumerate(cells)}).columns[:-1]
    windows = [np.array(data.draw(st.lists(VALUES | st.sampled_from(one), min_size=size, max_size=size))) for one in cells]
    p_values, distances = together(columns, windows)
    assert p_values == [statistics.ks(column, window) for column, window in zip(columns, windows, strict=True)]
    alone = [statistics.wasserstein(column, window) for column, window in zip(columns, windows, strict=True)]
    assert distances == pytest.approx(alone, rel=1e-12, abs=1e-12)


def test_equal_samples_differ_by_nothing():
    cells = np.random.default_rng(1).normal(size=300)
    columns = reference_of({"x": cells, "y": cells * 2.0}).columns[:-1]
    p_values, distances = together(columns, [cells[::-1], cells * 2.0])
    assert p_values == [1.0, 1.0]
    assert distances == [0.0, 0.0]


def test_columns_with_other_different_values_go_together_by_ranks():
    rng = np.random.default_rng(2)
    columns = reference_of({"x": rng.normal(size=90), "y": rng.integers(0, 4, 90).astype(float), "z": np.zeros(90)}).columns[:-1]
    assert len({column.missing for column in columns}) == 3
    windows = [rng.normal(0.3, 1.0, 40), rng.integers(0, 6, 40).astype(float), np.zeros(40)]
    codes = np.array([column.codes(window) for column, window in zip(columns, windows, strict=True)])
    measuring = ColumnwiseKs(columns)
    alone = [statistics.ks(column, window) for column, window in zip(columns, windows, strict=True)]
    assert measuring.scores(codes) == alone == measuring.scores(codes), "and the codes are left as they were"


def test_the_size_of_the_window_may_change_from_call_to_call():
    rng = np.random.default_rng(3)
    columns = reference_of({"x": rng.normal(size=90), "y": rng.normal(size=90)}).columns[:-1]
    distances = ColumnwiseWasserstein(columns)
    for size in (30, 7, 30, 90):
        windows = rng.normal(0.5, 1.0, (2, size))
        before = windows.copy()
        alone = [statistics.wasserstein(column, window) for column, window in zip(columns, windows, strict=True)]
        assert distances.scores(windows) == pytest.approx(alone, rel=1e-12)
        assert (windows == before).all()


# Evidently's own functions


@pytest.fixture(scope="module")
def evidently():
    pytest.importorskip("evidently", reason="the oracle, evidently, is not installed (extra `report`)")
    from evidently.legacy.calculations import stattests
    from evidently.legacy.core import ColumnType

    def measured(test, reference, window):
        function = {"ks": stattests.ks_stat_test, "wasserstein": stattests.wasserstein_stat_test}[test]
        return function(pd.Series(reference), pd.Series(window), ColumnType.Numerical, 0.05).drift_score

    return measured


@pytest.mark.parametrize(("rows", "size"), [(1, 3), (120, 100), (1000, 333), (2000, 500)])
def test_columns_together_give_what_evidently_gives(evidently, rows, size):
    rng = np.random.default_rng(rows)
    samples = {name: draw(rng, rows) for name, draw in SAMPLES.items()}
    columns = reference_of(samples).columns[:-1]
    windows = [draw(rng, size) + (0.2 if number % 2 else 0.0) for number, draw in enumerate(SAMPLES.values())]
    p_values, distances = together(columns, windows)
    for (name, cells), window, p, distance in zip(samples.items(), windows, p_values, distances, strict=True):
        assert p == pytest.approx(evidently("ks", cells, window), rel=1e-9, abs=1e-12), name
        assert distance == pytest.approx(evidently("wasserstein", cells, window), rel=1e-9, abs=1e-9), name


# The limit that uses them


@pytest.mark.parametrize("rows", [800, 1200])
@pytest.mark.parametrize("test", ["auto", "ks", "wasserstein"])
def test_a_limit_gives_each_column_its_own_score_whichever_have_missing_values(test, rows):
    rng = np.random.default_rng(rows)
    cells = {name: draw(rng, rows) for name, draw in SAMPLES.items() if name != "huge"}
    cells["short"] = rng.normal(size=rows - 300)
    reference = reference_of(cells)
    window = CountWindow(60, 60).build(reference.columns)
    judge = EvidentlyLimit("l", test).build(reference, 60)
    chosen = set()
    for turn in range(4):
        shown = [draw(rng, 60) + 0.4 * turn for name, draw in SAMPLES.items() if name != "huge"] + [rng.normal(size=60), np.ones(60)]
        for number in range(turn):
            shown[(number + turn) % 6][5] = (math.nan, math.inf, -math.inf)[number]
        shown[2] = np.full(60, math.nan) if turn == 3 else shown[2]
        window.put(Rows.of(reference.columns, shown, np.arange(60), np.zeros(60)))
        findings, _ = judge.judge(window)
        assert [finding.feature for finding in findings] == [column.name for column in reference.columns]
        for finding, column, one in zip(findings, reference.columns, shown, strict=True):
            known = column.known(one)
            if not len(known):
                assert finding.unknown == "the window has no values"
                continue
            named = statistics.choose(column, known) if test == "auto" else test
            chosen.add(named)
            assert finding.test == named
            assert finding.score == pytest.approx(statistics.measure(named, column, known), rel=1e-12, abs=1e-15)
            assert finding.over == statistics.over(named, finding.score, finding.threshold)
            assert finding.threshold == statistics.DEFAULT_THRESHOLDS[named]
    expected = {"auto": {"ks", "chisquare", "z"} if rows == 800 else {"ks", "wasserstein", "jensenshannon"}}.get(test, {test})
    assert chosen == expected, chosen


def test_no_more_sets_of_columns_are_kept_than_sixteen():
    rng = np.random.default_rng(5)
    reference = reference_of({f"x{number}": rng.normal(size=50) for number in range(6)})
    window = CountWindow(4, 1).build(reference.columns)
    judge = EvidentlyLimit("l", "ks").build(reference, 4)
    for number in range(1, 63):
        shown = [np.array([math.nan if number >> place & 1 else 0.5, 0.1, 0.2, 0.3]) for place in range(6)] + [np.ones(4)]
        window.put(Rows.of(reference.columns, shown, np.arange(4), np.zeros(4)))
        findings, _ = judge.judge(window)
        for column, one, finding in zip(reference.columns, shown, findings, strict=True):
            assert finding.score == statistics.ks(column, column.known(one))
        assert len(judge._together) <= 16
