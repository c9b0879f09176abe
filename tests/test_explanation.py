"""The explanation of a verdict: the raw columns' own numbers, the moment of the change, and shares that sum to one."""

import json
import math
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from inference.versions import Feature, Schema
from streaming.core.changepoint import NOWHERE, left_level, left_share
from streaming.core.explanation import MOST, explain
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, EvidentlyLimit, QualityLimit
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.moved import MOST as MOST_MOVED
from streaming.core.reference import prepare
from streaming.core.verdict import Decision, Finding, Moved, Place, Span, Verdict, ranking
from streaming.core.window import CountWindow, Rows
from streaming.replay import as_line, as_text
from streaming.testing import prediction, records

SCHEMA = Schema((Feature("x", "numeric"), Feature("y", "numeric"), Feature("c", "categorical")), "categorical", "t")
SPAN = Span(0, 7, 99, 7.0, 99.0)


def reference_of(columns, schema=SCHEMA):
    rows = len(next(iter(columns.values())))
    return prepare("default/m", "1", schema, {**columns, "prediction": ["1"] * rows})


def rows_of(reference, columns):
    count = len(next(iter(columns.values())))
    cells = [column.array({**columns, "prediction": ["1"] * count}[column.name]) for column in reference.columns]
    return Rows.of(reference.columns, cells, np.arange(1000, 1000 + count), np.arange(count) * 10.0)


def window_of(reference, columns):
    rows = rows_of(reference, columns)
    window = CountWindow(len(rows), len(rows)).build(reference.columns)
    window.put(rows)
    return window


def over(feature, test="ks", signal="", limit="l", score=1.0):
    return Finding(limit, feature, test, score, 1.0, True, "", signal)


def explained(reference, columns, *findings, breached=("l",)):
    return explain(reference, window_of(reference, columns), findings, breached, SPAN)


def moved(one):
    return {name: (before, after) for name, before, after in one.moved}


NUMBERS = st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf])
NAMES = st.sampled_from(["a", "b", "c", None])


def table(names, low=2, high=60):
    return st.lists(st.tuples(NUMBERS, NUMBERS, names), min_size=low, max_size=high).map(
        lambda rows: {"x": [row[0] for row in rows], "y": [row[1] for row in rows], "c": [row[2] for row in rows]}
    )


def close(got, expected):
    return (got is None and not math.isfinite(expected)) or got == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    known=table(NAMES),
    window=table(NAMES | st.sampled_from(["new", "newer"])),
    signal=st.sampled_from(["level up", "spread down", "missing up", ""]),
)
def test_before_and_after_are_the_raw_columns_own_numbers(known, window, signal):
    reference = reference_of(known)
    ((one,), more) = explained(reference, window, over("x", "cusum", signal))
    assert more == 0
    place = one.since.offset - 1000
    assert (one.rows, one.since.time) == (len(window["x"]) - place, place * 10.0)
    sides = [np.array(known["x"]), np.array(window["x"])[place:]]
    told = moved(one)
    for number, side in enumerate(sides):
        finite = side[np.isfinite(side)]
        if len(finite):
            assert close(told["mean"][number], np.mean(finite))
            assert close(told["median"][number], np.median(finite))
            assert close(told["standard deviation"][number], np.std(finite))
            assert close(told["interquartile range"][number], np.subtract(*np.percentile(finite, [75, 25])))
        elif "mean" in told:
            assert told["mean"][number] is None
        assert told.get("missing", (0.0, 0.0))[number] == pytest.approx(np.isnan(side).mean())


@settings(deadline=None, max_examples=50)
@given(
    known=table(NAMES),
    window=table(NAMES | st.sampled_from(["new", "newer"])),
    signal=st.sampled_from(["category 'a' up", "unseen up", ""]),
)
def test_shares_of_categories_are_counted_over_all_rows(known, window, signal):
    reference = reference_of(known)
    ((one,), _) = explained(reference, window, over("c", "chisquare", signal))
    after = window["c"][one.since.offset - 1000 :]
    assert len({what for what, _, _ in one.moved}) == len(one.moved)
    for what, before, now in one.moved:
        if what.startswith("never seen"):
            assert before == 0.0
            assert now == pytest.approx(
                sum(name in ("a", "b", "c", "new", "newer") and name not in known["c"] for name in after) / len(after)
            )
        else:
            name = None if what == "missing" else what.removeprefix("category '").removesuffix("'")
            assert before == pytest.approx(known["c"].count(name) / len(known["c"]))
            assert now == pytest.approx(after.count(name) / len(after))
    if signal.startswith("category") and "a" in known["c"]:
        assert one.moved[0].what == "category 'a'"


@settings(deadline=None, max_examples=30)
@given(known=table(NAMES, 5), window=table(NAMES, 5))
def test_a_pair_is_told_by_spearmans_correlation(known, window):
    reference = reference_of(known)
    ((one,), _) = explained(reference, window, over("x, y", "cusum", "pair up"))
    place = one.since.offset - 1000
    told = moved(one).get("rank correlation", (None, None))
    for got, (x, y) in zip(told, [(known["x"], known["y"]), (window["x"][place:], window["y"][place:])], strict=True):
        both = ~np.isnan(x) & ~np.isnan(y)
        x, y = np.array(x)[both], np.array(y)[both]
        if len(x) < 2 or len({*x}) == 1 or len({*y}) == 1:
            assert got is None
        else:
            assert got == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)


def stream(seed, rows, change=None, at=0):
    """Quiet rows of all kinds, with a change from row `at` on."""
    rng = np.random.default_rng(seed)
    columns = {
        "x": rng.normal(size=rows),
        "y": rng.lognormal(size=rows),
        "c": rng.choice(np.array(["a", "b", "z"], dtype=object), rows, p=[0.6, 0.3, 0.1]),
    }
    if change:
        change(rng, columns, slice(at, rows), rows - at)
    return columns


def shift(rng, columns, rest, count):
    columns["x"][rest] += 1.0


def spread(rng, columns, rest, count):
    columns["x"][rest] *= 3.0


def lacking(rng, columns, rest, count):
    columns["y"][rest] = np.where(rng.uniform(size=count) < 0.3, np.nan, columns["y"][rest])


def new_name(rng, columns, rest, count):
    columns["c"][rest] = np.where(rng.uniform(size=count) < 0.2, "Zürich", columns["c"][rest])


def mix(rng, columns, rest, count):
    columns["c"][rest] = rng.choice(np.array(["a", "b", "z"], dtype=object), count, p=[0.2, 0.3, 0.5])


def tied(rng, columns, rest, count):
    columns["y"][rest] = np.exp(columns["x"][rest])


@pytest.mark.parametrize("count", [60, 250])
@pytest.mark.parametrize(
    ("change", "finding", "what", "direction"),
    [
        (shift, over("x", "ks"), "mean", "up"),
        (shift, over("x", "cusum", "level up"), "mean", "up"),
        (spread, over("x", "wasserstein"), "standard deviation", "up"),
        (lacking, over("y", "missing"), "missing", "up"),
        (lacking, over("y", "cusum", "missing up"), "missing", "up"),
        (new_name, over("c", "new_categories"), "never seen, most often 'Zürich'", "up"),
        (new_name, over("c", "chisquare"), "never seen, most often 'Zürich'", "up"),
        (mix, over("c", "cusum", "category 'a' down"), "category 'a'", "down"),
        (tied, over("x, y", "cusum", "pair up"), "rank correlation", "up"),
    ],
    ids=lambda value: (
        getattr(value, "__name__", None) or (f"{value.feature} {value.test} {value.signal}" if isinstance(value, Finding) else str(value))
    ),
)
def test_each_kind_of_change_is_told_with_its_moment(change, finding, what, direction, count):
    reference = reference_of(stream(1, 1000))
    apart = []
    for seed in range(2, 9):
        ((one,), _) = explained(reference, stream(seed, 500, change, 500 - count), finding)
        assert (one.moved[0].what, one.direction, one.share) == (what, direction, 1.0)
        assert (one.moved[0].after > one.moved[0].before) == (direction == "up")
        apart.append(one.since.offset - (1500 - count))
    assert abs(np.median(apart)) <= 5, apart
    assert max(map(abs, apart)) <= count / 2, apart


def test_a_change_older_than_the_window_is_said_to_be_so():
    reference = reference_of(stream(1, 1000))
    ((one,), _) = explained(reference, stream(2, 300, shift), over("x"))
    assert one.earlier
    assert one.since.offset - 1000 <= 10
    ((one,), _) = explained(reference, stream(2, 300, shift, 100), over("x"))
    assert not one.earlier


def test_what_was_a_fall_is_no_rise():
    reference = reference_of(stream(1, 1000))
    ((one,), _) = explained(reference, {**stream(2, 300), "x": stream(2, 300)["x"] - 1.0}, over("x"))
    assert (one.direction, one.moved[0].what) == ("down", "mean")
    assert one.moved[0].after < one.moved[0].before


def test_a_rise_is_sought_where_it_rose():
    """A longer fall lies before it, of which more speaks for a change: a finding that says up is not about that."""
    reference = reference_of(stream(1, 1000))
    columns = stream(2, 300, shift, 250)
    columns["x"][100:200] -= 2.0
    columns["y"][100:200] = np.nan
    columns["y"][250:] = 1.0
    (y, x), _ = explained(reference, columns, over("x", "cusum", "level up"), over("y", "cusum", "missing up"))
    assert (x.feature, x.direction) == ("x", "up")
    assert abs(x.since.offset - 1250) <= 5
    assert (y.feature, y.since.offset) == ("y", 1100)


def test_a_single_outlier_does_not_turn_the_direction_round():
    reference = reference_of(stream(1, 1000))
    columns = stream(2, 300, shift, 100)
    columns["x"][200] = -1e9
    ((one,), _) = explained(reference, columns, over("x"))
    assert (one.direction, one.moved[0].what) == ("up", "median")
    assert moved(one)["mean"][1] < -1e6, "the mean is told all the same"


def test_shares_follow_how_far_from_normal_each_is_and_sum_to_one():
    reference = reference_of(stream(1, 1000))
    columns = stream(2, 300, shift, 100)
    columns["y"][200:] *= 2.0
    findings = [over("y"), over("x"), over("x", "psi", limit="other"), over("c"), over("x", "cusum", "level up", limit="third")]
    given, more = explained(reference, columns, *findings, breached=("l", "other", "third"))
    assert more == 0
    assert sum(one.share for one in given) == pytest.approx(1.0)
    features = ranking(given)
    assert [feature for feature, _ in features] == ["x", "y", "c"]
    assert [one.feature for one in given] == ["x", "x", "x", "y", "c"]
    # However many limits have found a feature, it weighs no more.
    once, _ = explained(reference, columns, over("y"), over("x"), over("c"))
    assert ranking(once) == [(feature, pytest.approx(share)) for feature, share in features]


@settings(deadline=None, max_examples=40)
@given(data=st.data(), known=table(NAMES), window=table(NAMES))
def test_the_order_of_the_findings_changes_nothing(data, known, window):
    reference = reference_of(known)
    signals = st.sampled_from(["", "level up", "missing up", "unseen up", "spread down"])
    some = st.builds(
        over,
        st.sampled_from(["x", "y", "c", "x, y", "gone"]),
        st.sampled_from(["ks", "missing", "psi"]),
        signals,
        st.sampled_from(["l", "k"]),
    )
    findings = data.draw(st.lists(some, min_size=1, max_size=8))
    given = explained(reference, window, *findings, breached=("l", "k"))
    assert explained(reference, window, *data.draw(st.permutations(findings)), breached=("l", "k")) == given
    assert math.fsum(one.share for one in given[0]) == pytest.approx(1.0)
    assert all(0.0 <= one.share <= 1.0 for one in given[0])


def test_what_is_within_its_limit_or_of_a_limit_that_is_not_breached_is_left_out():
    reference = reference_of(stream(1, 300))
    quiet = over("y")._replace(over=False)
    given, more = explained(reference, stream(2, 300, shift), over("x"), quiet, over("c", limit="share of the columns"))
    assert ([one.feature for one in given], more) == (["x"], 0)
    assert explain(reference, window_of(reference, stream(2, 300)), (), ("l",), SPAN) == ((), 0)


def test_what_cannot_be_followed_is_told_with_what_it_says_itself():
    reference = reference_of(stream(1, 300))
    labelled = Finding("errors", "prediction", "adwin", 0.3, 0.05, True, "", "error up 0.05 -> 0.3")
    ((one,), _) = explain(reference, None, (labelled,), ("errors",), SPAN)
    assert one.moved == (Moved("error", 0.05, 0.3),)
    assert (one.direction, one.since, one.rows, one.share) == ("up", Place(7, 7.0), 0, 1.0)
    given, _ = explained(reference, stream(2, 300, shift), over("x"), over("no column"))
    assert [(one.feature, one.share, one.moved == ()) for one in given] == [("no column", 0.5, True), ("x", 0.5, False)]


def test_names_with_commas_are_the_columns_that_there_are():
    schema = Schema((Feature("a, b", "numeric"), Feature("c", "numeric")), "categorical", "t")
    rng = np.random.default_rng(0)
    reference = reference_of({"a, b": rng.normal(size=200), "c": rng.normal(size=200)}, schema)
    columns = {"a, b": rng.normal(size=100), "c": rng.normal(size=100)}
    given, _ = explained(reference, columns, over("a, b"), over("a, b, c", "cusum", "pair up"))
    assert {one.feature: one.moved[0].what for one in given}["a, b, c"] == "rank correlation"
    assert {one.feature: one.moved[0].what for one in given}["a, b"] != "rank correlation"


def test_its_size_is_bounded_and_the_rest_is_counted():
    names = [f"x{number}" for number in range(200)]
    schema = Schema((*(Feature(name, "numeric") for name in names), Feature("c", "categorical")), "categorical", "t")
    rng = np.random.default_rng(0)
    known = {**{name: rng.normal(size=100) for name in names}, "c": [f"{'long' * 100} {number % 50}" for number in range(100)]}
    window = {**{name: rng.normal(size=50) + number / 50 for number, name in enumerate(names)}, "c": ["other" * 1000] * 50}
    given, more = explained(reference_of(known, schema), window, *(over(name) for name in [*names, "c"]))
    assert (len(given), more) == (MOST, 201 - MOST)
    assert {one.feature for one in given} >= {"x199", "x198"}, "those furthest from normal are kept"
    assert math.fsum(one.share for one in given) < 1.0
    assert max(len(one.moved) for one in given) <= MOST_MOVED + 2
    assert len(json.dumps([one.as_dict() for one in given])) < 100_000


def test_its_json_has_what_moved_first_on_top():
    reference = reference_of(stream(1, 1000))
    ((one,), _) = explained(reference, stream(2, 300, shift, 100), over("x", "ks", score=1e-9))
    plain = json.loads(json.dumps(one.as_dict()))
    assert plain["since"] == {"offset": one.since.offset, "time": one.since.time}
    assert (plain["what"], plain["before"], plain["after"]) == one.moved[0]
    assert plain["moved"][1]["what"] == "median"
    assert plain["score"] == 1e-9


LIMITS = (BudgetLimit("budget", 10_000.0), EvidentlyLimit("psi", "psi"), QualityLimit("q", 0.05, 0.01, 0.01))


def said(cuts, restart):
    """The explanations of every verdict that is over, with the rows in pieces and a new monitor between two of them."""
    reference = reference_of(stream(1, 1000))
    columns = stream(3, 700, shift, 300)
    lacking(np.random.default_rng(0), columns, slice(450, 700), 250)
    rows = rows_of(reference, columns)
    spec = MonitorSpec(CountWindow(200, 50), LIMITS, Governor(1, 1))
    monitor, told = Monitor(spec, reference, 0), []
    edges = sorted({0, *cuts, len(rows)})
    for number, (start, stop) in enumerate(pairwise(edges)):
        if number == restart:
            state, monitor = monitor.state(), Monitor(spec, reference, 0)
            assert monitor.restore(state) == []
        for verdict in monitor.take(rows.part(start, stop)):
            if verdict.drift:
                decision = Governor(1, 1).build().judge(verdict, monitor.drift_began(verdict))
                told.append(monitor.explained(decision))
    return told


@pytest.fixture(scope="module")
def undisturbed():
    return said([], 0)


@settings(deadline=None, max_examples=8)
@given(cuts=st.lists(st.integers(1, 699), max_size=5), restart=st.integers(1, 3))
def test_batches_and_restarts_change_nothing(undisturbed, cuts, restart):
    assert said(cuts, restart) == undisturbed
    assert len(undisturbed) > 5
    assert all(decision.explanation and decision.evidence for decision in undisturbed)
    assert {one.feature for one in undisturbed[-1].explanation} >= {"x", "y"}


def test_a_change_point_of_nothing_is_nowhere():
    assert left_level(np.array([]), 0.0, 1.0) == NOWHERE
    assert left_share(np.array([], dtype=bool), 0.5) == NOWHERE
    assert left_level(np.full(5, np.nan), 0.0, 1.0) == NOWHERE
    assert left_level(np.ones(5), 0.0, 0.0) == NOWHERE, "what never varies has no distance from normal"


def test_a_verdict_of_another_part_is_explained_by_itself():
    reference = reference_of(stream(1, 300))
    monitor = Monitor(MonitorSpec(CountWindow(100, 50), LIMITS, Governor(1, 1)), reference, 0)
    list(monitor.take(rows_of(reference, stream(2, 200))))
    finding = Finding("errors", "x", "adwin", 0.3, 0.05, True, "", "error up 0.05 -> 0.3")
    verdict = Verdict("v", "default/m", "1", 1, 200, SPAN, (finding,), ("errors",), "errors")
    decision = monitor.explained(Governor(1, 1).build().judge(verdict, SPAN))
    assert decision.explanation[0].moved == (Moved("error", 0.05, 0.3),)


def fleet_outcomes():
    known = stream(1, 1000)

    def references(model, version):
        return reference_of(known)

    columns = stream(3, 500, shift, 300)
    rows = [[float(x), float(y), str(c)] for x, y, c in zip(columns["x"], columns["y"], columns["c"], strict=True)]
    pairs = [prediction("default/m", f"p{number}", [row], [1]) for number, row in enumerate(rows)]
    limits = BudgetLimit("budget", 1e6), EvidentlyLimit("ks", "ks", 1e-9)
    spec = MonitorSpec(CountWindow(200, 50), limits, Governor(2, 3, cooldown=1e6))
    fleet = Fleet({"default/m": spec}, references, live=lambda model: "1", annotation="a")
    return fleet.feed(records([event for pair in pairs for event in pair]))


def test_a_decision_that_acts_has_it_and_one_to_hold_has_not():
    decisions = [outcome for outcome in fleet_outcomes() if isinstance(outcome, Decision)]
    assert [(decision.action, bool(decision.explanation)) for decision in decisions[:2]] == [("hold", False), ("retrain", True)]
    (first, *_) = decisions[1].explanation
    assert first.feature == "x"
    # Two records a prediction: the response completes it.
    assert abs(first.since.offset - 601) <= 20
    assert first.since.time == first.since.offset


def test_replay_tells_it_to_people_and_as_json():
    (decision,) = [outcome for outcome in fleet_outcomes() if isinstance(outcome, Decision) and outcome.action == "retrain"]
    head, line, *_ = as_text(decision).splitlines()
    assert "retrain: over the limit" in head
    first = decision.explanation[0]
    since = datetime.fromtimestamp(first.since.time, UTC).strftime("%H:%M:%SZ")
    share = ranking(decision.explanation)[0][1]
    assert line == f"    x: mean {first.moved[0].before:.3g} -> {first.moved[0].after:.3g} (up), since {since}, {100 * share:.0f} %"
    plain = json.loads(as_line(decision))
    assert plain["explanation"][0]["feature"] == "x"
    assert math.fsum(one["share"] for one in plain["explanation"]) == pytest.approx(1.0)
    assert math.fsum(one["share"] for one in plain["ranking"]) == pytest.approx(1.0)
