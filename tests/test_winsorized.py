"""Winsorized statistics: outliers neither trip nor mask, and the numbers are Evidently's on clipped data."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.core import statistics
from streaming.core.limits import EvidentlyLimit
from streaming.core.reference import prepare, winsorized
from streaming.core.window import CountWindow, Rows

SCHEMA = Schema((Feature("x", "numeric"), Feature("y", "numeric")), "numeric", "t")


def reference_of(cells):
    return prepare("default/m", "1", SCHEMA, {"x": cells, "y": np.arange(len(cells)), "prediction": np.zeros(len(cells))})


def column_of(cells):
    return reference_of(cells).columns[0]


def score(test, reference, window, *, winsorize):
    """The finding of `x`, as a limit gives it."""
    prepared = reference_of(reference)
    limit = EvidentlyLimit("l", test, None, None, ("x",), winsorize=winsorize)
    view = CountWindow(len(window), len(window)).build(prepared.columns)
    cells = [np.asarray(window, dtype=np.float64), np.zeros(len(window)), np.zeros(len(window))]
    view.put(Rows.of(prepared.columns, cells, np.arange(len(window)), np.zeros(len(window))))
    ((finding,), _) = limit.build(prepared, len(window)).judge(view)
    return finding


TESTS = ["wasserstein", "psi", "jensenshannon"]


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("rows", [500, 5000])
def test_a_single_outlier_neither_trips_nor_masks(test, rows):
    rng = np.random.default_rng(rows)
    reference, window, position = rng.normal(size=rows), rng.normal(size=1000), 500
    spoiled, shifted = window.copy(), window + 1.0
    spoiled[position] = 100.0
    spoiled_shifted = shifted.copy()
    spoiled_shifted[position] = 100.0
    assert not score(test, reference, spoiled, winsorize=True).over
    assert score(test, reference, spoiled_shifted, winsorize=True).over
    plain = score(test, reference, shifted, winsorize=False).score
    assert score(test, reference, spoiled_shifted, winsorize=True).score == pytest.approx(plain, rel=0.15)
    # Without it Evidently's own numbers do just that.
    if test == "wasserstein":
        assert score(test, reference, spoiled, winsorize=False).over
    else:
        assert not score(test, reference, spoiled_shifted, winsorize=False).over


@pytest.mark.parametrize("test", TESTS)
def test_an_outlier_in_the_reference_does_not_blind(test):
    rng = np.random.default_rng(1)
    reference, window = rng.normal(size=1000), rng.normal(size=1000) + 1.0
    reference[7] = 1e6
    assert not score(test, reference, window, winsorize=False).over
    assert score(test, reference, window, winsorize=True).over


@pytest.mark.filterwarnings("ignore:overflow encountered in square")  # numpy's standard deviation of the widest
@pytest.mark.parametrize(
    ("cells", "ends"),
    [
        (np.arange(101.0), (0.0, 100.0)),
        ([*np.arange(101.0), 1e6, -1e6], (0.0, 100.0)),
        ([*np.zeros(970), *np.arange(1.0, 31.0), 1e6], (0.0, 30.0)),
        ([0.0] * 999 + [1.0], (0.0, 1.0)),
        ([7.0] * 20, (7.0, 7.0)),
        ([-1.7e308, 0.0, 1.7e308], (-1.7e308, 1.7e308)),
    ],
    ids=["no outlier", "outliers", "mostly zero", "one other value", "constant", "widest"],
)
def test_the_ends_are_the_references_own_values_without_its_outliers(cells, ends):
    column = winsorized(column_of(cells))
    assert column.ends == ends
    assert (column.values[0], column.values[-1]) == ends
    assert column.known(np.array([-np.inf, -1e300, 1e300, np.nan])).tolist() == [max(-1e300, ends[0]), min(1e300, ends[1])]


def test_a_column_without_values_stays_as_it_is():
    column = column_of([np.nan] * 3)
    assert winsorized(column) is column


VALUES = st.integers(-3, 3).map(float) | st.floats(-100.0, 100.0) | st.sampled_from([1e6, -1e9, 1e100, np.nan, np.inf])


@pytest.mark.parametrize("test", ["ks", *TESTS])
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_numbers_are_evidentlys_on_clipped_data(test, data):
    stattests = pytest.importorskip("evidently.legacy.calculations.stattests")
    from evidently.legacy.core import ColumnType

    def some(most):
        return st.lists(VALUES, min_size=2, max_size=most).filter(lambda cells: np.isfinite(cells).any())

    reference, window = data.draw(some(60)), data.draw(some(30))
    low, high = winsorized(column_of(reference)).ends
    theirs = {
        "ks": stattests.ks_stat_test,
        "wasserstein": stattests.wasserstein_stat_test,
        "psi": stattests.psi_stat_test,
        "jensenshannon": stattests.jensenshannon_stat_test,
    }[test]
    series = [pd.Series(cells, dtype=float).replace([np.inf, -np.inf], np.nan).dropna().clip(low, high) for cells in (reference, window)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(*series, ColumnType.Numerical, statistics.DEFAULT_THRESHOLDS[test])
    found = score(test, reference, window, winsorize=True)
    assert found.score == pytest.approx(expected.drift_score, rel=1e-9, abs=1e-12)
    assert found.over == bool(expected.drifted)


def test_many_columns_together_are_clipped_as_each_alone():
    rng = np.random.default_rng(4)
    reference = prepare(
        "default/m", "1", SCHEMA, {"x": rng.normal(size=400), "y": rng.standard_cauchy(400), "prediction": rng.lognormal(size=400)}
    )
    cells = [rng.standard_cauchy(100), rng.standard_cauchy(100) * 5.0, rng.lognormal(size=100)]
    window = CountWindow(100, 100).build(reference.columns)
    window.put(Rows.of(reference.columns, cells, np.arange(100), np.zeros(100)))
    for test in ("ks", "wasserstein"):
        findings, _ = EvidentlyLimit("l", test, winsorize=True).build(reference, 100).judge(window)
        alone = [winsorized(column) for column in reference.columns]
        expected = [statistics.measure(test, column, column.known(values)) for column, values in zip(alone, cells, strict=True)]
        assert [finding.score for finding in findings] == pytest.approx(expected, rel=1e-12)
    plain, _ = EvidentlyLimit("l", "wasserstein").build(reference, 100).judge(window)
    assert findings[1].score > 1.5 * plain[1].score, "outliers of the reference make the plain distance small"
