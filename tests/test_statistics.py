"""Each statistic equals Evidently's own function: score to 1e-9, the drift flag exactly, the choice of test too."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.core import statistics
from streaming.core.reference import prepare

pytest.importorskip("evidently", reason="the oracle, evidently, is not installed (extra `report`)")


@pytest.fixture(scope="module", autouse=True)
def evidently():
    from evidently.legacy.calculations import stattests
    from evidently.legacy.core import ColumnType

    functions = {
        "ks": stattests.ks_stat_test,
        "wasserstein": stattests.wasserstein_stat_test,
        "psi": stattests.psi_stat_test,
        "jensenshannon": stattests.jensenshannon_stat_test,
        "chisquare": stattests.chi_stat_test,
        "z": stattests.z_stat_test,
    }
    return functions, ColumnType


def column(kind, reference):
    schema = Schema((Feature("x", kind),), "numeric", "y")
    return prepare("default/m", "1", schema, {"x": list(reference), "prediction": [0.0] * len(reference)}).columns[0]


def series(kind, values):
    """The column as Evidently sees it: NaN and infinities dropped first."""
    if kind == "numeric":
        return pd.Series([np.nan if value is None else value for value in values], dtype=float).replace([np.inf, -np.inf], np.nan).dropna()
    return pd.Series(values, dtype=object).dropna()


def compare(evidently, test, kind, reference, window):
    functions, column_type = evidently
    prepared = column(kind, reference)
    known = prepared.known(prepared.array(window))
    feature_type = column_type.Numerical if kind == "numeric" else column_type.Categorical
    threshold = statistics.DEFAULT_THRESHOLDS[test]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = functions[test](series(kind, reference), series(kind, window), feature_type, threshold)
    ours = statistics.measure(test, prepared, known)
    if np.isnan(theirs.drift_score):
        assert np.isnan(ours) or ours == 0.0
    else:
        assert ours == pytest.approx(theirs.drift_score, rel=1e-9, abs=1e-12)
    assert statistics.over(test, ours, threshold) == bool(theirs.drifted)


NUMBERS = st.one_of(
    st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 3)),
    st.integers(-3, 3).map(float),
    st.sampled_from([None, float("nan"), float("inf"), float("-inf")]),
)
NAMES = st.sampled_from(["a", "b", "c", "d", "e", None])


def some(values, kind, low, high):
    def has_a_value(cells):
        return any(cell is not None and (kind == "categorical" or np.isfinite(cell)) for cell in cells)

    return st.lists(values, min_size=low, max_size=high).filter(has_a_value)


@pytest.mark.parametrize("test", ["ks", "wasserstein", "psi", "jensenshannon"])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_numeric_scores_equal_evidently_on_any_numbers(evidently, test, data):
    reference = data.draw(some(NUMBERS, "numeric", 1, 60))
    window = data.draw(some(NUMBERS, "numeric", 1, 40))
    compare(evidently, test, "numeric", reference, window)


@pytest.mark.parametrize("test", ["psi", "jensenshannon", "chisquare", "z"])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(reference=some(NAMES, "categorical", 1, 60), window=some(NAMES, "categorical", 1, 40))
def test_categorical_scores_equal_evidently_on_any_categories(evidently, test, reference, window):
    compare(evidently, test, "categorical", reference, window)


@pytest.mark.parametrize(("rows", "size"), [(120, 100), (1000, 333), (5000, 1000), (12_000, 500)])
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5, 3.0])
@pytest.mark.parametrize("test", ["ks", "wasserstein", "psi", "jensenshannon"])
def test_scores_equal_evidently_at_real_sizes(evidently, test, rows, size, shift):
    rng = np.random.default_rng(rows + size)
    compare(evidently, test, "numeric", rng.gamma(2.0, 3.0, rows), rng.gamma(2.0, 3.0, size) + shift)


@pytest.mark.parametrize(
    ("kind", "reference", "window"),
    [
        ("numeric", [1.0] * 50, [1.0] * 30),
        ("numeric", [1.0] * 50, [2.0] * 30),
        ("numeric", [0.0, 1.0] * 30, [0.0, 1.0, 1.0] * 10),
        ("numeric", [0.0, 1.0, 2.0] * 30, [0.0, 2.0, 2.0] * 10),
        ("numeric", list(np.arange(6.0)) * 10, [1.0, 2.0]),
        ("numeric", list(np.arange(5.0)) * 10, [7.0]),
        ("numeric", list(np.arange(1001.0)), [3.0, 4.0]),
        ("numeric", list(np.arange(1000.0)), [3.0, 4.0]),
        ("numeric", [1.0, 2.0] * 600, [1.0, 2.0]),
        ("numeric", [1.0, 2.0, float("nan")] * 400, [1.0, 2.0]),
        ("categorical", ["a", "b"] * 50, ["a", "b", "b"]),
        ("categorical", ["a", "b"] * 50, ["c"]),
        ("categorical", ["a", "b"] * 501, ["a", "b", "b"]),
        ("categorical", ["a"] * 50, ["a"] * 5),
    ],
)
def test_the_choice_of_test_is_evidentlys(evidently, kind, reference, window):
    from evidently.legacy.calculations.stattests.registry import get_stattest

    prepared = column(kind, reference)
    known = prepared.known(prepared.array(window))
    chosen = statistics.choose(prepared, known)
    theirs = get_stattest(series(kind, reference), series(kind, window), "num" if kind == "numeric" else "cat", None)
    assert chosen == theirs.name
    compare(evidently, chosen, kind, reference, window)


@pytest.mark.parametrize("test", ["psi", "jensenshannon"])
@pytest.mark.parametrize("distinct", [20, 21])
def test_bins_replace_values_from_the_same_number_of_distinct_values_on(evidently, test, distinct):
    compare(evidently, test, "numeric", [float(n) for n in range(distinct)] * 3, [0.5, 3.0, 7.0, 7.0, 19.0])


def test_a_very_rare_cell_makes_empty_cells_rarer_still(evidently):
    compare(evidently, "psi", "categorical", ["a"] * 11_999 + ["b"], ["a", "b", "c"])
    compare(evidently, "psi", "categorical", ["a"] * 9_999 + ["b"], ["a", "b", "c"])


@pytest.mark.parametrize(
    ("test", "at_the_limit"),
    [("ks", True), ("chisquare", False), ("z", False), ("wasserstein", True), ("psi", True), ("jensenshannon", True)],
)
def test_a_score_on_the_limit_drifts_where_evidently_says_so(evidently, test, at_the_limit):
    functions, column_type = evidently
    kind = "categorical" if test in ("chisquare", "z") else "numeric"
    reference, window = (
        (["a", "b", "b"] * 9, ["a", "a", "b"]) if kind == "categorical" else ([float(n) for n in range(30)], [1.0, 2.0, 40.0])
    )
    prepared = column(kind, reference)
    score = statistics.measure(test, prepared, prepared.known(prepared.array(window)))
    feature_type = column_type.Categorical if kind == "categorical" else column_type.Numerical
    theirs = functions[test](series(kind, reference), series(kind, window), feature_type, score)
    # On the limit the last bit of theirs decides; where both are the same number, so is the answer.
    if theirs.drift_score == score:
        assert bool(theirs.drifted) is at_the_limit
    assert statistics.over(test, score, score) is at_the_limit
    assert statistics.over(test, float("nan"), 0.5) is False


def test_a_repeated_statistic_costs_a_look_up_and_gives_the_same_p():
    statistics.ks_p.cache_clear()
    prepared = column("numeric", np.arange(100.0))
    first = statistics.measure("ks", prepared, np.arange(50.0))
    again = statistics.measure("ks", prepared, np.arange(50.0) + 0.25)
    assert first == again
    assert statistics.ks_p.cache_info().hits == 1


def test_an_unseen_category_gives_a_p_of_zero():
    prepared = column("categorical", ["a", "b"] * 20)
    assert statistics.measure("chisquare", prepared, prepared.array(["a", "b", "new"])) == 0.0
