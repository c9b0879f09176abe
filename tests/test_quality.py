"""Data quality: shares that a person can mean, above what the reference leads one to expect."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import SettingsError
from inference.versions import Feature, Schema
from streaming.assemble import monitor_spec
from streaming.core.governor import Governor
from streaming.core.limits import QualityLimit
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import prepare
from streaming.core.window import CountWindow, Rows
from streaming.settings import load_settings

SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "categorical", "t")


def reference_of(x, c):
    return prepare("default/m", "1", SCHEMA, {"x": x, "c": c, "prediction": ["1"] * len(x)})


REFERENCE = reference_of(list(np.linspace(0.0, 10.0, 100)), ["a", "b"] * 50)


def window_of(reference, x, c):
    columns = {"x": x, "c": c, "prediction": ["1"] * len(x)}
    cells = [column.array(columns[column.name]) for column in reference.columns]
    window = CountWindow(len(x), len(x)).build(reference.columns)
    window.put(Rows.of(reference.columns, cells, np.arange(len(x)), np.zeros(len(x))))
    return window


def judged(limit, x, c, reference=REFERENCE):
    findings, breached = limit.build(reference, len(x)).judge(window_of(reference, x, c))
    return {(finding.feature, finding.test): finding for finding in findings}, breached


def test_each_share_is_of_the_values_that_it_is_about():
    x = [5.0] * 14 + [None, math.nan, -0.001, 10.001, math.inf, -math.inf]
    c = ["a"] * 15 + [None] * 4 + ["z"]
    found, breached = judged(QualityLimit("q", 0.05, 0.01, 0.01), x, c)
    assert breached
    assert {key: (finding.score, finding.threshold, finding.over) for key, finding in found.items()} == {
        ("x", "missing"): (2 / 20, 0.05, True),
        ("c", "missing"): (4 / 20, 0.05, True),
        ("prediction", "missing"): (0.0, 0.05, False),
        ("x", "out_of_range"): (4 / 18, 0.01, True),
        ("c", "new_categories"): (1 / 16, 0.01, True),
        ("prediction", "new_categories"): (0.0, 0.01, False),
    }


def test_the_ends_of_the_range_are_within_it():
    found, breached = judged(QualityLimit("q", out_of_range=0.0), [0.0, 10.0, 5.0], ["a"] * 3)
    assert not breached
    assert found["x", "out_of_range"].score == 0.0


def test_a_share_is_over_when_it_is_above_its_limit_not_at_it():
    limit = QualityLimit("q", missing=0.25, columns=("x",))
    assert not judged(limit, [None, 1.0, 1.0, 1.0], ["a"] * 4)[1]
    assert judged(limit, [None, None, 1.0, 1.0], ["a"] * 4)[1]


def test_what_the_reference_itself_lacks_or_hardly_knows_is_expected():
    rare = [f"once {number}" for number in range(10)]
    reference = reference_of([None] * 20 + [math.inf] * 8 + list(np.linspace(0.0, 1.0, 72)), ["a"] * 90 + rare)
    found, _ = judged(QualityLimit("q", 0.05, 0.01, 0.01), [0.5] * 10, ["a"] * 10, reference)
    limits = {key: finding.threshold for key, finding in found.items()}
    assert limits["x", "missing"] == pytest.approx(0.25)
    assert limits["x", "out_of_range"] == pytest.approx(8 / 80 + 0.01)
    # A tenth of its values it holds once: as many are to be expected that it does not hold (Good 1953).
    assert limits["c", "new_categories"] == pytest.approx(0.11)


def test_numbers_with_few_values_hold_categories_too():
    few = reference_of([1.0, 2.0, 3.0, 4.0] * 25, ["a"] * 100)
    found, _ = judged(QualityLimit("q", new_categories=0.1), [1.0, 2.5, 3.0, None], ["a"] * 4, few)
    assert found["x", "new_categories"].score == pytest.approx(1 / 3)
    assert ("x", "new_categories") not in judged(QualityLimit("q", new_categories=0.1), [1.0, 2.0], ["a", "b"])[0]


def test_a_window_without_values_is_unknown_to_all_but_missing():
    found, breached = judged(QualityLimit("q", 0.05, 0.01, 0.01, ("x", "c")), [None] * 3, [None] * 3)
    assert breached
    assert found["x", "missing"].score == 1.0
    for key in (("x", "out_of_range"), ("c", "new_categories")):
        assert math.isnan(found[key].score)
        assert (found[key].over, found[key].unknown) == (False, "the window has no values")


def test_each_aspect_is_asked_of_the_named_columns_that_have_it():
    found, _ = judged(QualityLimit("q", 0.05, 0.01, 0.01, ("x", "c")), [1.0, 2.0], ["a", "b"])
    assert sorted(found) == [("c", "missing"), ("c", "new_categories"), ("x", "missing"), ("x", "out_of_range")]


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        (QualityLimit("q", 0.1, columns=("nope",)), "limit 'q': no such column nope"),
        (QualityLimit("q", out_of_range=0.1, columns=("c",)), "limit 'q: out_of_range': no column"),
        (QualityLimit("q", new_categories=0.1, columns=("x",)), "limit 'q: new_categories': no column"),
    ],
)
def test_a_limit_that_looks_at_nothing_is_refused(limit, says):
    with pytest.raises(SettingsError, match=says):
        limit.build(REFERENCE, 10)


@pytest.mark.parametrize("given", [{}, {"missing": 1.0}, {"out_of_range": -0.1}])
def test_a_limit_without_a_question_or_with_no_share_is_refused(given):
    with pytest.raises(ValueError, match=r"at least one of missing|is a share from 0"):
        QualityLimit("q", **given)


def test_it_began_where_the_share_left_what_was_expected():
    x = [5.0] * 120 + [None, 5.0, None] * 20
    judge = QualityLimit("q", missing=0.05, new_categories=0.5).build(REFERENCE, len(x))
    window = window_of(REFERENCE, x, ["a"] * 150 + ["z"] * 30)
    assert judge.judge(window)[1]
    assert judge.began(window) == 120, "of the missing values, not of the new category, which is within its limit"


NUMBERS = st.sampled_from([0.0, 1.0, 2.0, 3.0, 2.5, -1.0, math.inf, -math.inf, math.nan])
NAMES = st.sampled_from(["a", "b", "c", None])


@settings(deadline=None, max_examples=80)
@given(
    known=st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, math.nan]), NAMES), min_size=2, max_size=40),
    window=st.lists(st.tuples(NUMBERS, st.sampled_from(["a", "b", "c", "d", None])), min_size=2, max_size=30),
)
def test_the_shares_are_those_counted_one_by_one(known, window):
    reference = reference_of([*[x for x, _ in known], 1.0, 2.0], [*[c for _, c in known], "a", "b"])
    x, c = [value for value, _ in window], [name for _, name in window]
    found, _ = judged(QualityLimit("q", 0.1, 0.1, 0.1, ("x", "c")), x, c, reference)
    lacking = sum(math.isnan(value) for value in x)
    low, high = min(reference.columns[0].values), max(reference.columns[0].values)
    assert found["x", "missing"].score == lacking / len(x)
    if lacking < len(x):
        assert found["x", "out_of_range"].score == sum(value < low or value > high for value in x) / (len(x) - lacking)
        strange = sum(not math.isnan(value) and value not in reference.columns[0].distinct for value in x)
        assert found["x", "new_categories"].score == strange / (len(x) - lacking)
    names = [name for name in c if name is not None]
    if names:
        assert found["c", "new_categories"].score == sum(name not in reference.columns[1].counts for name in names) / len(names)


CONFIG = """
models:
  default/m:
    window: {size: 100, slide: 20}
    limits:
      - {kind: quality, missing: 0.05, out_of_range: 0.01, columns: [x]}
"""


def test_a_surge_of_missing_values_is_drift_as_configured(tmp_path):
    (tmp_path / "driftloop.yaml").write_text(CONFIG)
    spec = monitor_spec(load_settings(tmp_path / "driftloop.yaml", {}).models["default/m"])
    assert spec.limits == (QualityLimit("quality", 0.05, 0.01, None, ("x",)),)
    monitor = Monitor(MonitorSpec(spec.window, spec.limits, Governor()), REFERENCE, 0)
    rows = [[5.0, "a"]] * 200 + [[None, "a"], [5.0, "a"]] * 50
    verdicts = list(monitor.feed(rows, ["1"] * 300, range(300), [float(number) for number in range(300)]))
    assert [verdict.predictions for verdict in verdicts if verdict.drift] == [220, 240, 260, 280, 300]
    assert monitor.drift_began(verdicts[-1]).first_offset == 200


def test_a_quality_limit_must_ask_for_something(tmp_path):
    (tmp_path / "driftloop.yaml").write_text(CONFIG.replace("missing: 0.05, out_of_range: 0.01, ", ""))
    with pytest.raises(SettingsError, match=r"driftloop.yaml:6: .*ask for at least one of missing, out_of_range, new_categories"):
        load_settings(tmp_path / "driftloop.yaml", {})
