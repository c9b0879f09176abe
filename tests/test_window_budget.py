"""A budget of false alarms on Evidently's tests: thresholds from a block bootstrap, one for each column, that hold what they promise."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.stats import poisson

from inference.versions import Feature, Schema
from streaming.core.bootstrap import evidence
from streaming.core.bootstrap.calibration import quiet
from streaming.core.governor import Governor
from streaming.core.limits import EvidentlyLimit
from streaming.core.limits import calibrated as window_limits
from streaming.core.limits.pace import Pace, WindowBudget
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import prepare, winsorized
from streaming.core.segments import shared
from streaming.core.window import CountWindow, Rows

SIZE, SLIDE = 200, 20


def autoregression(rng, rows, rho, columns=1):
    noise = rng.normal(size=(columns, rows + 500)) * math.sqrt(1.0 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise)[:, 500:]


def numeric(cells):
    """A reference of numeric columns x0, x1, ..., the last of them the prediction."""
    names = [f"x{number}" for number in range(len(cells) - 1)]
    schema = Schema(tuple(Feature(name, "numeric") for name in names), "numeric", "t")
    return prepare("ns/m", "1", schema, dict(zip([*names, "prediction"], cells, strict=True)))


def rows_of(reference, cells, times=None):
    arrays = [column.array(values) for column, values in zip(reference.columns, cells, strict=True)]
    count = len(arrays[0])
    return Rows.of(reference.columns, arrays, np.arange(count), np.zeros(count) if times is None else times)


def calibrated(reference, test="wasserstein", events=20_000.0, **options):
    return EvidentlyLimit("l", test, budget=WindowBudget(SLIDE, events), **options).build(reference, SIZE)


def alarms(judged, rows, size=SIZE):
    count, until = 0, 0
    for verdict in judged.take(rows):
        if verdict.drift and verdict.predictions >= until:
            count, until = count + 1, verdict.predictions + size
    return count


# What is promised


@pytest.mark.parametrize(("test", "rho"), [("wasserstein", 0.0), ("ks", 0.0), ("wasserstein", 0.9), ("ks", 0.9)])
def test_a_calibrated_limit_keeps_its_budget(test, rho):
    false, size, rows = 0, 100, 10_000
    limit = EvidentlyLimit("l", test, budget=WindowBudget(20, 5_000.0))
    spec = MonitorSpec(CountWindow(size, 20), (limit,), Governor())
    for seed in range(2):
        cells = autoregression(np.random.default_rng((seed, 10)), 3000 + rows, rho, 4)
        reference = numeric(cells[:, :3000])
        false += alarms(Monitor(spec, reference, 0), rows_of(reference, cells[:, 3000:]), size)
    assert poisson.sf(false - 1, 2 * rows / 5_000.0) > 0.02
    shifted = cells[:, 3000:4000] + np.array([[0.0], [0.0], [1.0 if rho == 0.0 else 4.0], [0.0]])
    verdicts = Monitor(spec, reference, 0).take(rows_of(reference, shifted))
    over = [finding.feature for verdict in verdicts for finding in verdict.findings if finding.over]
    assert over.count("x2") > 35


def test_what_evidentlys_default_costs_is_what_was_counted():
    """32 false triggers in 100,000 events: 20 independent normal columns, reference 5,000, window 1,000, slide 100."""
    reference = numeric(np.random.default_rng(11).normal(size=(20, 5000)))
    tested = window_limits.tested_columns("auto", list(enumerate(reference.columns)), None, 1000, 100)
    found = quiet(tested, reference, "seed")
    given = np.array([evidence.evidence_at(test, column, 0.1, 1000) for test, column in zip(tested.tests, tested.columns, strict=True)])
    assert set(tested.tests) == {"wasserstein"}
    assert 32 / 1.5 < found.rate(given) * 100_000 < 32 * 1.5
    # Above a limit that keeps to it, and at least half of what it promises less than the budget.
    assert 0.05 < found.rate(found.limits(100_000.0)) * 100_000 < 1.0
    assert found.rate(np.full(20, 1e-9)) * 1000 == pytest.approx(1.0, rel=0.01)


def test_a_noisy_column_does_not_blind_the_others():
    rng = np.random.default_rng(12)
    cells = rng.normal(size=(4, 4000))
    cells[1] = autoregression(rng, 4000, 0.9)[0]
    limits = calibrated(numeric(cells))._calibrated.at(20_000.0)
    plain = calibrated(numeric(np.random.default_rng(12).normal(size=(4, 4000))))._calibrated.at(20_000.0)
    assert limits[1].score > 2.0 * plain[1].score
    for index in (0, 2, 3):
        assert limits[index].score == pytest.approx(plain[index].score, rel=0.25)


def test_a_share_of_the_columns_costs_less_than_any_of_them():
    reference = numeric(np.random.default_rng(13).normal(size=(6, 2000)))
    of_any = calibrated(reference)._calibrated.at(20_000.0)
    of_half = calibrated(reference, share=0.5)._calibrated.at(20_000.0)
    assert all(of_half[index].evidence < 0.8 * of_any[index].evidence for index in of_any)


def test_columns_that_move_together_are_not_paid_for_twice():
    rng = np.random.default_rng(14)
    one = rng.normal(size=2000)
    alone = calibrated(numeric([one, rng.normal(size=2000)]))._calibrated.at(20_000.0)
    copies = calibrated(numeric([one] * 12))._calibrated.at(20_000.0)
    apart = calibrated(numeric(rng.normal(size=(12, 2000))))._calibrated.at(20_000.0)
    assert copies[0].evidence < apart[0].evidence
    assert copies[0].evidence == pytest.approx(alone[0].evidence, rel=0.25)


def test_a_rarer_false_alarm_wants_a_higher_limit_and_a_reference_that_swings_a_higher_still():
    rng = np.random.default_rng(15)
    reference = numeric(rng.normal(size=(3, 3000)))
    limits = calibrated(reference)._calibrated
    wanted = [limits.at(events)[0].evidence for events in (2_000.0, 20_000.0, 2e6, 2e9)]
    assert wanted == sorted(wanted) and wanted[3] < 5.0 * wanted[1]
    cells = rng.normal(size=(3, 3000))
    cells[0, 1000:2000] += 2.0
    swinging = calibrated(numeric(cells))._calibrated
    assert swinging.at(20_000.0)[0].evidence >= swinging.quiet.own[0] > limits.at(20_000.0)[0].evidence
    # What its own windows reach is kept to however little else asks for it.
    once = replace(swinging.quiet, own=np.full(3, 1e3))
    assert once.limits(20_000.0).tolist() == [1e3] * 3
    grown = replace(limits.quiet, grown=np.full(3, 1.5))
    assert grown.limits(20_000.0) == pytest.approx(1.5 * limits.quiet.limits(20_000.0))


def test_a_p_value_that_a_rare_category_makes_0_is_said_to_tell_nothing():
    rng = np.random.default_rng(16)
    schema = Schema((Feature("long", "categorical"), Feature("short", "categorical")), "numeric", "t")
    tail = [f"name {number}" for number in range(60)]
    sample = {
        "long": [*rng.choice(["a", "b"], 740), *tail],
        "short": list(rng.choice(["a", "b", "c"], 800)),
        "prediction": list(rng.normal(size=800)),
    }
    reference = prepare("ns/m", "1", schema, sample)
    judge = calibrated(reference, "chisquare")
    window = CountWindow(SIZE, SLIDE).build(reference.columns)
    rows = rows_of(reference, [["a"] * 100 + ["new"] * 100, ["a"] * 200, [0.0] * 200])
    judge.observe(rows)
    window.put(rows)
    findings, breached = judge.judge(window)
    assert [(finding.feature, finding.over) for finding in findings] == [("long", False), ("short", True)]
    assert "values that occur once in the reference make this p-value 0" in findings[0].unknown
    assert breached
    # It decides nothing: the other column's limit is the one that it has alone.
    alone = calibrated(reference, "chisquare", columns=("short",))._calibrated.at(20_000.0)[1]
    assert judge._calibrated.at(20_000.0)[1].evidence == pytest.approx(alone.evidence, rel=0.3)


def test_a_few_far_values_that_decide_the_distance_are_said_to_tell_nothing_unless_they_are_pulled_in():
    cells = np.random.default_rng(24).normal(size=(2, 1000))
    cells[0, [100, 500]] = 1e6
    reference = numeric(cells)
    assert "few far values" in calibrated(reference)._calibrated.at(20_000.0)[0].unknown
    assert calibrated(reference)._calibrated.at(20_000.0)[1].unknown == ""
    for options in ({"winsorize": True}, {"test": "ks"}):
        assert calibrated(reference, **options)._calibrated.at(20_000.0)[0].unknown == ""


def test_winsorized_columns_are_calibrated_as_they_are_judged():
    cells = np.random.default_rng(17).normal(size=(3, 2000))
    cells[0, ::200] = 1e6
    reference = numeric(cells)
    limits = calibrated(reference, winsorize=True)._calibrated
    assert limits.quiet.tested.columns[0].ends == winsorized(reference.columns[0]).ends
    found = limits.at(20_000.0)
    assert found[0].score == pytest.approx(found[1].score, rel=0.3)


def test_the_same_reference_gives_the_same_limits_and_another_name_others():
    cells = np.random.default_rng(18).normal(size=(3, 1000))
    columns = list(enumerate(numeric(cells).columns))
    first, again = (quiet(window_limits.tested_columns("ks", columns, None, 100, 10), numeric(cells), "a") for _ in range(2))
    assert first.limits(1e4).tolist() == again.limits(1e4).tolist()
    other = quiet(first.tested, numeric(cells), "b")
    assert other.limits(1e4).tolist() != first.limits(1e4).tolist()
    assert other.limits(1e4) == pytest.approx(first.limits(1e4), rel=0.3)


# The pace, and what is remembered


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 60), min_size=1, max_size=30), seconds=st.floats(0.001, 30.0), at=st.integers(0, 200))
def test_the_pace_does_not_depend_on_where_batches_are_cut_nor_on_a_restart(cuts, seconds, at):
    budget = WindowBudget(SLIDE, None, 86_400.0)
    times = np.cumsum(np.full(600, seconds)) + 1e9
    whole = budget.build(50)
    whole.observe(times)
    expected = [whole.events(row) for row in range(1, 601)]
    cut, told, start = budget.build(50), [], 0
    for step in [*cuts, 600]:
        stop = min(600, start + step)
        cut.observe(times[start:stop])
        told += [cut.events(row) for row in range(start + 1, stop + 1)]
        start = stop
        if start >= at:
            state = cut.state()
            cut = budget.build(50)
            cut.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(state)))
    assert told == expected
    assert expected[-1] == pytest.approx(86_400.0 / seconds, rel=0.5) or expected[-1] == 1024.0


def test_a_budget_in_time_moves_the_limits_of_the_judge():
    reference = numeric(np.random.default_rng(19).normal(size=(3, 1000)))
    limit = EvidentlyLimit("l", "ks", budget=WindowBudget(SLIDE, None, 30 * 86_400.0))

    def threshold(seconds):
        monitor = Monitor(MonitorSpec(CountWindow(SIZE, SLIDE), (limit,), Governor()), reference, 0)
        rows = rows_of(reference, np.random.default_rng(20).normal(size=(3, 400)), np.arange(400) * seconds)
        return [verdict.findings[0].threshold for verdict in monitor.take(rows)]

    fast, slow = threshold(0.01), threshold(100.0)
    assert fast[-1] < 0.5 * slow[-1]
    assert len(set(slow)) == 1 or slow[0] == slow[-1]
    with pytest.raises(ValueError, match="limits for 3"):
        Pace(limit.budget, 10).restore({"rows": 1, "began": 0.0, "events": 3.0})


@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.integers(1, 300), min_size=1, max_size=6))
def test_a_restored_judge_goes_on_as_an_undisturbed_one(cuts):
    reference = numeric(np.random.default_rng(21).normal(size=(2, 600)))
    limit = EvidentlyLimit("l", "ks", budget=WindowBudget(50, None, 86_400.0))
    spec = MonitorSpec(CountWindow(100, 50), (limit,), Governor())
    cells = np.random.default_rng(22).normal(size=(2, 900))
    rows = rows_of(reference, cells, np.cumsum(np.random.default_rng(23).exponential(1.0, 900)))
    expected = list(Monitor(spec, reference, 0).take(rows))
    running, got, start = Monitor(spec, reference, 0), [], 0
    for step in [*cuts, 900]:
        stop = min(900, start + step)
        got += running.take(rows.part(start, stop))
        start, state = stop, running.state()
        running = Monitor(spec, reference, 0)
        assert running.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(state))) == []
    assert [(one.id, one.findings, one.breached) for one in got] == [(one.id, one.findings, one.breached) for one in expected]


def test_a_budget_and_a_threshold_together_are_refused_and_every_setting_is_in_the_fingerprint():
    with pytest.raises(ValueError, match="not both"):
        EvidentlyLimit("l", threshold=0.1, budget=WindowBudget(10, 1e5))
    for wrong in ({}, {"events": 1e5, "seconds": 60.0}, {"events": 0.5}):
        with pytest.raises(ValueError, match="a budget is"):
            WindowBudget(10, **wrong)
    budgets = [None, WindowBudget(10, 1e5), WindowBudget(20, 1e5), WindowBudget(10, 1e6), WindowBudget(10, None, 1e6)]
    assert len({EvidentlyLimit("l", budget=budget).fingerprint for budget in budgets}) == len(budgets)


def test_a_segment_gets_its_part_of_the_budget():
    limit = EvidentlyLimit("l", budget=WindowBudget(10, 1e5))
    assert shared(limit, 0.25, 0.5).budget == WindowBudget(10, 2e5)
    assert shared(EvidentlyLimit("l", budget=WindowBudget(10, None, 3600.0)), 0.5).budget == WindowBudget(10, None, 7200.0)
    assert shared(EvidentlyLimit("l"), 0.5) == EvidentlyLimit("l")
