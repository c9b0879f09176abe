"""Limits in closed form: each part solves the equation that its docstring states, and the limits hold what they promise."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.special import logsumexp, ndtri
from scipy.stats import poisson

from inference.versions import Feature, Schema
from streaming.core.cusum import calibration
from streaming.core.cusum.calibration import calibrate
from streaming.core.cusum.recursion import accumulate
from streaming.core.cusum.signals import Law, Signal, Signals
from streaming.core.dependence import long_run
from streaming.core.limits import BudgetLimit
from streaming.core.reference import prepare
from streaming.core.window import Rows

ALLOWANCES = np.array([0.125, 0.25, 0.5])


def numeric(*columns):
    """A prepared reference of numeric columns, the last of them the prediction."""
    names = [f"x{number}" for number in range(len(columns) - 1)]
    schema = Schema(tuple(Feature(name, "numeric") for name in names), "numeric", "t")
    return prepare("default/m", "1", schema, dict(zip([*names, "prediction"], columns, strict=True)))


def calibrated(*columns, events=100_000.0):
    reference = numeric(*columns)
    made = Signals(reference.columns)
    return calibrate(made, reference.codes, events), reference


def places_of(table, kind):
    """Which of the statistics are of this kind of signal."""
    every = [*table.signals.singles, *table.signals.pairs]
    return [place for place, number in enumerate(table.signal) if every[number].kind == kind]


def rows_of(reference, *columns):
    cells = [column.array(values) for column, values in zip(reference.columns, columns, strict=True)]
    return Rows.of(reference.columns, cells, np.arange(len(cells[0])), np.zeros(len(cells[0])))


def autoregression(rng, rows, rho):
    """Variance 1, started in the stationary law."""
    noise = rng.normal(size=rows + 500) * math.sqrt(1.0 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise)[500:]


# Siegmund's equation


@settings(deadline=None)
@given(allowance=st.floats(0.05, 2.0), per_alarm=st.floats(10.0, 1e12))
def test_siegmunds_b_solves_his_equation(allowance, per_alarm):
    (b,) = calibration._siegmund(np.array([allowance]), np.array([per_alarm]))
    grown = 2.0 * allowance * b
    assert b > 0.0
    assert (math.exp(grown) - grown - 1.0) / (2.0 * allowance**2) == pytest.approx(per_alarm, rel=1e-6)


# The exponent


def exponents(law, allowances=ALLOWANCES, side=1.0):
    count = len(allowances)
    return calibration._exponents([law], np.zeros(count, dtype=np.int64), np.full(count, side), np.array(allowances))


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("rows", [2000, 20_000])
def test_the_exponent_of_a_normal_signal_is_twice_the_allowance(rows, side):
    law = Law(ndtri((np.arange(rows) + 0.5) / rows), np.full(rows, 1.0 / rows))
    assert exponents(law, side=side) == pytest.approx(2.0 * ALLOWANCES, rel=0.02)


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("p", [0.001, 0.02, 0.3, 0.5, 0.8, 0.99])
def test_the_exponent_of_an_indicator_is_the_root_of_its_equation(p, side):
    deviation = math.sqrt(p * (1.0 - p))
    law = Law(np.array([-p, 1.0 - p]) / deviation, np.array([1.0 - p, p]))
    for allowance, theta in zip(ALLOWANCES, exponents(law, side=side), strict=True):

        def excess(theta, allowance=allowance):
            return logsumexp(theta * (side * law.values - allowance), b=law.shares)

        if (side * law.values).max() <= allowance:
            continue
        # The other root is 0.
        root = brentq(excess, 1e-4, 60.0)
        assert theta == pytest.approx(root, rel=1e-6)


def test_laws_of_different_kinds_do_not_disturb_each_other():
    normal = Law(ndtri((np.arange(500) + 0.5) / 500), np.full(500, 1.0 / 500))
    flag = Law(np.array([-0.5, 2.0]), np.array([0.8, 0.2]))
    signal = np.array([1, 0, 1, 0])
    side, allowance = np.array([1.0, 1.0, -1.0, -1.0]), np.full(4, 0.25)
    together = calibration._exponents([normal, flag], signal, side, allowance)
    alone = [exponents((normal, flag)[number], [0.25], way)[0] for number, way in zip(signal, side, strict=True)]
    assert together == pytest.approx(alone)
    assert together[0] < together[1] < together[2], "a flag rises in large steps and falls in small ones"


def test_a_signal_that_cannot_exceed_the_allowance_has_a_finite_limit():
    """Of a flag that is nearly always up, the rise is a small step."""
    law = Law(np.array([-9.95, 0.1005]), np.array([0.01, 0.99]))
    assert np.isfinite(exponents(law)).all()
    assert (exponents(law) > 0.0).all()
    table, _ = calibrated([1.0] * 396 + [0.0] * 4, [5.0] * 400)
    assert np.isfinite(table.limit).all()
    assert (table.limit > 0.0).all()


# Long-run variance


def measured(values):
    known = long_run(values)
    return known.ratio, known.bandwidth


@pytest.mark.parametrize(("rho", "expected", "tolerance"), [(0.0, 1.0, 0.08), (0.5, 3.0, 0.15), (0.9, 19.0, 0.25)])
def test_the_long_run_variance_of_an_autoregression_is_the_known_one(rho, expected, tolerance):
    rng = np.random.default_rng(1)
    values = np.array([autoregression(rng, 20_000, rho) for _ in range(12)]).T
    ratio, bandwidth = measured(values * 7.0 + 100.0)
    assert ratio == pytest.approx(np.full(12, expected), rel=tolerance * 1.6)
    assert ratio.mean() == pytest.approx(expected, rel=tolerance * 0.5)
    assert (ratio >= 1.0).all()
    assert (bandwidth >= 2).all()
    assert rho < 0.9 or bandwidth.min() > 20


def test_the_long_run_variance_is_never_below_1_and_1_of_what_does_not_move():
    rng = np.random.default_rng(2)
    swinging = np.cumsum(rng.normal(size=2001))
    values = np.column_stack([np.diff(swinging - np.roll(swinging, 1))[:1999], np.full(1999, 3.0), np.tile([1.0, -1.0], 1000)[:1999]])
    ratio, _ = measured(values)
    assert ratio[1] == 1.0
    assert ratio.min() == 1.0
    for rows in range(1, 8):
        few, none = measured(rng.normal(size=(rows, 2)))
        assert (few.tolist(), none.tolist()) == ([1.0, 1.0], [0.0, 0.0])
    for rows in range(8, 40):
        assert np.isfinite(measured(np.cumsum(rng.normal(size=(rows, 40)), axis=0))[0]).all()


def test_more_signals_than_a_batch_are_each_their_own():
    rng = np.random.default_rng(3)
    values = np.array([autoregression(rng, 3000, 0.8 * (number % 2)) for number in range(70)]).T
    ratio, bandwidth = measured(values)
    for number in (0, 31, 32, 33, 63, 64, 69):
        alone, width = measured(values[:, [number]])
        assert (ratio[number], bandwidth[number]) == (pytest.approx(alone[0]), width[0])
    assert ratio[1::2].min() > 3.0 > 1.6 > ratio[::2].max()


# What the reference can't know


@given(exponent=st.floats(5.0, 40.0), relatives=st.lists(st.floats(0.0, 3.0), min_size=2, max_size=2))
def test_the_less_a_variance_is_known_the_higher_the_limit(exponent, relatives):
    exact, low, high = calibration._unsure(np.full(3, exponent), np.array([0.0, min(relatives), max(relatives)]))
    assert exact == pytest.approx(1.0, abs=1e-6)
    assert 1.0 - 1e-6 <= low <= high + 1e-6


def test_limits_grow_with_the_budget_and_fall_with_the_size_of_the_reference():
    rng = np.random.default_rng(4)
    columns = rng.normal(size=(2, 8000))
    by_events = [calibrated(*columns[:, :1000], events=events)[0].limit for events in (1e3, 1e5, 1e7)]
    assert (by_events[0] < by_events[1]).all()
    assert (by_events[1] < by_events[2]).all()
    by_rows = [calibrated(*columns[:, :rows])[0] for rows in (250, 1000, 8000)]
    # The law of a pair is of the sample itself and varies; of the levels all are as they must be.
    levels = [places_of(table, "level") for table in by_rows]
    limits = [table.limit[places].mean() for table, places in zip(by_rows, levels, strict=True)]
    taken = [table.allowance[places].mean() for table, places in zip(by_rows, levels, strict=True)]
    assert limits[0] > limits[1] > limits[2]
    assert taken[0] > taken[1] > taken[2] > np.mean(ALLOWANCES)


def test_the_level_of_an_independent_feature_has_siegmunds_limit():
    rng = np.random.default_rng(5)
    # No two columns, so no pair; the prediction is constant.
    table, _ = calibrated(rng.normal(size=5000), [1.0] * 5000)
    places = places_of(table, "level")
    every = [*table.signals.singles, *table.signals.pairs]
    signal, side, allowance, per_alarm = calibration._statistics(every, 100_000.0)
    assert signal.tolist() == table.signal.tolist()
    assert side.tolist() == table.side.tolist()
    closed = calibration._siegmund(allowance, per_alarm) - 1.166
    ratio = table.limit[places] / closed[places]
    assert (ratio >= 1.0).all()
    assert ratio.max() <= 1.08, "for what is unsure"
    assert ratio == pytest.approx(np.full(6, ratio[0]), rel=0.02), "at each allowance alike"
    assert (table.allowance[places] >= allowance[places] + closed[places] / 5000 * 0.9).all()
    assert (table.allowance[places] <= allowance[places] + closed[places] / 5000 * 1.15).all()
    assert allowance[places].tolist() == [0.125, 0.125, 0.25, 0.25, 0.5, 0.5]


def test_the_limit_of_a_pair_is_in_units_of_its_product():
    """Two switches that agree 19 times in 20: their product is 1 or -1, with a deviation of 0.44."""
    rng = np.random.default_rng(10)
    switch = rng.permutation(np.tile([0.0, 1.0], 5000))
    copy = np.where(rng.permutation(np.arange(10_000)) < 500, 1.0 - switch, switch)
    table, _ = calibrated(switch, copy)
    every = [*table.signals.singles, *table.signals.pairs]
    _, side, allowance, per_alarm = calibration._statistics(every, 100_000.0)
    deviation = math.sqrt(0.95 * 0.05) * 2.0
    law = Law(np.array([-1.0 - 0.9, 1.0 - 0.9]) / deviation, np.array([0.05, 0.95]))
    for place in places_of(table, "pair"):
        (theta,) = exponents(law, [allowance[place]], side[place])
        if side[place] < 0:
            (b,) = calibration._siegmund(allowance[[place]], per_alarm[[place]])
            expected = (b - 1.166) * 2.0 * allowance[place] / theta * deviation
            assert table.limit[place] == pytest.approx(expected, rel=0.2)
        taken = allowance[place] * deviation + side[place] * 0.9
        assert table.allowance[place] == pytest.approx(taken, abs=0.02)


# The budget, shared

SIGNALS = [
    *(Signal("level", (number,)) for number in range(3)),
    Signal("spread", (0,)),
    *(Signal("category", (3,), name) for name in "abc"),
    Signal("unseen", (3,), both=False),
    Signal("missing", (0,), both=False),
    Signal("missing", (1,)),
    Signal("pair", (0, 1)),
    Signal("pair", (0, 2)),
]


@pytest.mark.parametrize("every", [SIGNALS, SIGNALS[:1], SIGNALS[7:9], SIGNALS[-2:]])
def test_all_statistics_together_have_the_whole_budget(every):
    """One alarm in `events` but for what is in hand and what those of one signal have in common."""
    signal, side, allowance, per_alarm = calibration._statistics(every, 5000.0)
    in_hand = calibration._SAFETY * calibration._TOGETHER
    rates = 1.0 / per_alarm
    assert rates.sum() * in_hand * 5000.0 == pytest.approx(1.0)
    present = {one.kind for one in every}
    for kind in present:
        of_kind = np.array([every[number].kind == kind for number in signal])
        share = calibration._SHARES[kind] / sum(calibration._SHARES[other] for other in present)
        assert rates[of_kind].sum() * in_hand * 5000.0 == pytest.approx(share)
        sides = {(number, way): rates[(signal == number) & (side == way)].sum() for number in set(signal[of_kind]) for way in (1.0, -1.0)}
        known = [rate for rate in sides.values() if rate]
        assert known == pytest.approx([known[0]] * len(known)), "each signal's side has the same"
    for number, one in enumerate(every):
        assert {*side[signal == number]} == ({1.0, -1.0} if one.both else {1.0})
        of_one = sorted({*allowance[signal == number]})
        assert of_one == ([0.25, 0.5] if one.kind == "pair" else [0.125, 0.25, 0.5])


def test_the_parts_of_a_budget_add_up():
    assert sum(calibration._SHARES.values()) == pytest.approx(1.0)
    assert sum(calibration._PARTS) == sum(calibration._PAIR_PARTS) == pytest.approx(1.0)
    assert calibration._SAFETY >= 1.0
    # Three statistics alarm at least as often as one of them and at most as often as three.
    assert 1.0 / 3.0 <= calibration._TOGETHER <= 1.0


# The reference's own excursions


def excursions(values, signal, side, taken):
    """The highest of each statistic over the values, in plain Python, and how many rows it took from 0 to there."""
    told = []
    for number, way, part in zip(signal, side, taken, strict=True):
        at, highest, since, lasted = 0.0, 0.0, 0, 1
        for row, value in enumerate(values[:, number], 1):
            at = max(0.0, at + (value * way - part))
            if at > highest:
                highest, lasted = at, row - since
            if at == 0.0:
                since = row
        told.append((highest, lasted))
    return tuple(zip(*told, strict=True))


def test_the_highest_excursion_is_that_of_the_recursion_row_by_row():
    rng = np.random.default_rng(6)
    table, reference = calibrated(autoregression(rng, 700, 0.7), rng.exponential(size=700))
    values = table.signals.of(reference.codes)
    highest, lasted = calibration._excursions(table, values)
    by_hand = excursions(values, table.signal.tolist(), table.side.tolist(), table.allowance.tolist())
    assert highest.tolist() == pytest.approx(by_hand[0])
    assert lasted.tolist() == list(by_hand[1])


def regimes(rng, rows):
    return rng.normal(size=rows) + np.repeat(rng.choice([-1.5, 0.0, 1.5], rows // 200 + 1), 200)[:rows]


def periodic(rng, rows):
    return rng.normal(size=rows) * 0.6 + 1.5 * np.sin(2.0 * np.pi * np.arange(rows) / 96.0)


def walk(rng, rows):
    return np.cumsum(rng.normal(size=rows))


@pytest.mark.parametrize("law", [regimes, periodic, walk], ids=lambda law: law.__name__)
@pytest.mark.parametrize("rows", [300, 3000])
def test_a_limit_is_never_below_what_happened_in_the_reference(law, rows):
    rng = np.random.default_rng(7)
    table, reference = calibrated(law(rng, rows), law(rng, rows), rng.normal(size=rows), events=1000.0)
    steps = table.steps(table.signals.of(reference.codes))
    accumulate(steps, np.zeros(len(table.limit)))
    assert (steps.max(axis=0) <= table.limit * (1.0 + 1e-9)).all()


def burst(rng, rows):
    return rng.normal(size=rows) + np.where(np.arange(rows) // 150 == 4, 1.5, 0.0)


@pytest.mark.parametrize("law", [regimes, walk, burst], ids=lambda law: law.__name__)
def test_an_excursion_of_another_kind_is_extended_to_the_length_of_the_budget(law):
    rng = np.random.default_rng(11)
    columns = law(rng, 6000), law(rng, 6000)
    limits = []
    for events in (1e5, 1e8):
        table, reference = calibrated(*columns, events=events)
        steps = table.steps(table.signals.of(reference.codes))
        accumulate(steps, np.zeros(len(table.limit)))
        assert (steps.max(axis=0) * 1.02 < table.limit).all()
        limits.append(table.limit)
    assert (limits[0] < limits[1]).all()


def test_an_excursion_is_extended_by_the_normal_law_of_a_walk_of_its_length():
    per_alarm = np.array([500.0, 1e4, 1e8])
    extended = calibration._extended(np.full(3, 30.0), np.full(3, 100.0), np.full(3, 4.0), 1000, per_alarm)
    # 100 of 1,000 rows: a tenth; as rare in so many rows: 100 / per_alarm, but never less rare than it was.
    law = NormalDist(0.0, math.sqrt(100.0 * 4.0))
    by_hand = [30.0 + law.inv_cdf(0.1) - law.inv_cdf(min(0.1, 100.0 / rows)) for rows in per_alarm]
    assert extended.tolist() == pytest.approx(by_hand)
    assert extended[0] == 30.0


@pytest.mark.parametrize(
    ("law", "rows"),
    [
        (lambda rng, rows: autoregression(rng, rows, 0.5), 5000),
        (lambda rng, rows: autoregression(rng, rows, 0.9), 10_000),
        (periodic, 4800),
        (lambda rng, rows: rng.lognormal(0.0, 1.5, rows), 1000),
        (lambda rng, rows: rng.integers(0, 3, rows).astype(float), 1000),
    ],
    ids=["autoregression 0.5", "autoregression 0.9", "periodic", "lognormal", "three values"],
)
def test_the_promise_holds_whatever_the_law_and_the_dependence(law, rows):
    rng, events, fresh = np.random.default_rng(8), 1_000.0, 19_200
    reference = numeric(law(rng, rows), law(rng, rows), law(rng, rows))
    alarms = len(BudgetLimit("b", events).build(reference, 50).observe(rows_of(reference, *(law(rng, fresh) for _ in range(3)))))
    assert alarms <= poisson.ppf(0.999, fresh / events)


def test_a_shift_of_a_dependent_feature_is_still_found():
    rng = np.random.default_rng(9)
    reference = numeric(*(autoregression(rng, 10_000, 0.5) for _ in range(3)))
    quiet, moved = (rows_of(reference, *(autoregression(rng, 1000, 0.5) + shift for shift in by)) for by in ((0, 0, 0), (1.0, 0, 0)))
    judge = BudgetLimit("b").build(reference, 100)
    assert judge.observe(quiet) == []
    assert 0 < judge.observe(moved)[0] < 250
