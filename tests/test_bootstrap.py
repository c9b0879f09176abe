"""The block bootstrap: rows drawn as they depend on each other, evidence as Evidently measures it, tails beyond what was drawn."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import genpareto

from inference.versions import Feature, Schema
from streaming.core import statistics
from streaming.core.bootstrap import evidence
from streaming.core.bootstrap.stretches import Dice, Sample
from streaming.core.bootstrap.tails import Tail, looks_between, tails
from streaming.core.dependence import block_length, halves, long_run, periodic
from streaming.core.reference import prepare


def autoregression(rng, rows, rho, columns=1):
    noise = rng.normal(size=(columns, rows + 500)) * math.sqrt(1.0 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise)[:, 500:]


# Dice and blocks


def test_the_dice_are_those_of_splitmix64_and_the_same_whatever_is_asked_at_once():
    together = Dice("a", 1).below(1000, 50)
    dice = Dice("a", 1)
    assert np.concatenate([dice.below(1000, 20), dice.below(1000, 30)]).tolist() == together.tolist()
    assert Dice("a", 2).below(1000, 50).tolist() != together.tolist()
    # As any implementation gives them, in whole numbers of any size.
    state, expected, whole = int(Dice("a", 1)._at), [], 2**64
    for _ in range(50):
        state = (state + 0x9E3779B97F4A7C15) % whole
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % whole
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % whole
        expected.append(((mixed ^ (mixed >> 31)) >> 32) * 1000 >> 32)
    assert together.tolist() == expected
    many = np.bincount(Dice("even").below(10, 100_000), minlength=10)
    assert many.min() > 9_600 and many.max() < 10_400


@pytest.mark.parametrize(("rho", "low", "high"), [(0.0, 1, 1), (0.5, 20, 40), (0.9, 80, 190)])
def test_a_blocks_length_is_that_of_politis_and_white(rho, low, high):
    values = autoregression(np.random.default_rng(1), 5000, rho, 4).T
    assert low <= block_length(long_run(values), 5000) <= high


def test_what_blocks_lose_of_the_long_run_variance_is_known():
    rho, length = 0.9, 100
    known = long_run(autoregression(np.random.default_rng(1), 50_000, rho, 4).T)
    lags = np.arange(1, length)
    expected = 1.0 + 2.0 * float((1.0 - lags / length) @ rho**lags)
    assert known.by_blocks(length).mean() == pytest.approx(expected, rel=0.1)
    assert (known.by_blocks(length) < known.ratio).all()


@pytest.mark.parametrize(("lengths", "found"), [((1000.0,), (1000.0,)), ((733.3,), (733.3,)), ((700.0, 1000.0), (1000.0, 700.0)), ((), ())])
def test_cycles_are_found_to_a_fraction_of_an_ordinate_and_taken_out(lengths, found):
    rng, places = np.random.default_rng(2), np.arange(8000)
    waves = sum(np.array([np.sin(2 * np.pi * places / length + phase) for phase in range(6)]) for length in lengths)
    told = periodic((waves + rng.normal(size=(6, 8000))).T)
    assert sorted(told.periods) == pytest.approx(sorted(found), rel=0.01)
    assert told.rest.std() == pytest.approx(1.0, abs=0.05)


def test_rows_are_drawn_in_blocks_and_in_step_with_the_cycle():
    places = np.arange(6000)
    cycle = np.sin(2 * np.pi * places / 600)
    rng = np.random.default_rng(3)
    sample = Sample.of(np.array([cycle + 0.5 * rng.normal(size=6000), cycle + 0.5 * rng.normal(size=6000)]).T)
    assert sample.periods == pytest.approx((600.0,), rel=0.01)
    drawn = sample.drawn(6000, 3000, Dice("x"))
    wanted = np.arange(6000, 9000)
    apart = (drawn - wanted) / 600.0
    assert np.abs(apart - np.round(apart)).max() < 0.03
    assert len(set((drawn // 600).tolist())) == 10
    dependent = Sample.of(autoregression(rng, 5000, 0.9, 2).T)
    steps = np.diff(dependent.drawn(0, 3000, Dice("x")))
    assert (steps == 1).mean() > 1.0 - 1.5 / dependent.block


def test_halves_that_differ_are_told_from_halves_that_swing():
    rng = np.random.default_rng(4)
    values = rng.normal(size=(4000, 5))
    values[2000:, 2] += 0.3
    ramp = rng.normal(size=(4000, 1)) + np.linspace(0.0, 1.0, 4000)[:, None]
    apart = halves(np.hstack([values, ramp])).apart
    assert apart[[2, 5]].min() > 6.0 > 4.0 > np.delete(apart, [2, 5]).max()
    swinging = halves(autoregression(rng, 4000, 0.9, 40).T)
    assert swinging.apart.max() < 6.0
    assert swinging.freedom.max() < 200.0


# Tails


def test_a_tail_that_falls_off_as_a_known_law_is_told_far_beyond_the_sample():
    rng = np.random.default_rng(5)
    maxima = np.column_stack([rng.exponential(2.0, 600) + 3.0 for _ in range(6)] + [genpareto.rvs(0.3, size=600, random_state=rng)] * 1)
    found = tails(maxima, ["light"] * 6 + ["heavy"])
    # Once in 10,000 stretches: of those above the start a tenth of 3 in 1,000.
    far = found.value(math.log(0.3 / 1e-4))
    assert far[:6] == pytest.approx(3.0 + 2.0 * math.log(1e4), rel=0.2)
    assert far[6] == pytest.approx(genpareto.ppf(1.0 - 1e-4, 0.3), rel=0.6)
    assert far[6] > 0.5 * genpareto.ppf(1.0 - 1e-4, 0.3)
    assert found.rarity(found.value(4.0)) == pytest.approx(np.full(7, 4.0))
    assert found.rarity(np.full((1, 7), np.inf)).min() == np.inf


def test_one_tails_value_and_chance_are_each_others_inverse_and_stay_on_the_safe_side():
    rng = np.random.default_rng(6)
    several = [Tail.of(rng.exponential(1.0, 500)) for _ in range(40)]
    assert np.mean([tail.at(0.5) for tail in several]) == pytest.approx(math.log(2.0), abs=0.02)
    assert math.log(1e5) < np.mean([tail.at(1e-5) for tail in several]) < 1.15 * math.log(1e5)
    assert np.median([tail.chance(math.log(1e4)) for tail in several]) == pytest.approx(1e-4, rel=0.4)
    assert {tail.chance(0.0) for tail in several} == {1.0}


@pytest.mark.parametrize(("fine", "coarse"), [(2, 20), (10, 20), (20, 20)])
def test_looking_more_often_passes_a_level_so_much_more_often(fine, coarse):
    """Means of a sliding window of normal values, against a simulation."""
    size, level = 200, 3.2
    sums = np.cumsum(np.random.default_rng(7).normal(size=4_000_000))
    heights = (sums[size:] - sums[:-size]) / math.sqrt(size)

    def passed(step):
        over = heights[::step] >= level
        places = np.flatnonzero(over) * step
        return 1 + int((np.diff(places) >= size).sum())

    told = looks_between(level**2 / 2.0, size, coarse, fine)
    assert told == pytest.approx(passed(fine) / passed(coarse), rel=0.2)


# Evidence


@pytest.mark.parametrize("test", [*statistics.DEFAULT_THRESHOLDS])
def test_evidence_and_score_are_two_names_of_one_thing(test):
    rng = np.random.default_rng(8)
    kind = "numeric" if "numeric" in statistics.ALLOWED_KINDS[test] else "categorical"
    schema = Schema((Feature("x", kind),), "numeric", "t")
    cells = list(rng.normal(size=900)) if kind == "numeric" else list(rng.choice(["a", "b", "c"], 900))
    (column, _) = prepare("ns/m", "1", schema, {"x": cells, "prediction": [0.0] * 900}).columns
    for shift in (0.0, 0.2, 0.6):
        share = 0.33 + shift / 3.0
        drawn = rng.normal(shift, size=300) if kind == "numeric" else rng.choice(["a", "b", "c"], 300, p=[share, 0.9 - share, 0.1])
        window = column.array(list(drawn))
        score, found = statistics.measure(test, column, window), evidence.measured(test, column, window)
        if score > 1e-12:
            assert evidence.score_of(test, column, found, 300) == pytest.approx(score, rel=1e-2)
        limit = evidence.evidence_at(test, column, score, 300)
        assert limit == pytest.approx(found, rel=1e-2) or score < 1e-12


def test_drawn_windows_are_measured_as_evidently_measures_them():
    """Of drawn rows against drawn references, and against the reference as it is; with missing values, ties, few and many values."""
    rng = np.random.default_rng(9)
    schema = Schema(
        (*(Feature(name, "numeric") for name in "abf"), Feature("c", "categorical"), Feature("d", "categorical")), "numeric", "t"
    )
    cells = {
        "a": rng.normal(size=600),
        "b": rng.poisson(3.0, 600).astype(float),
        "f": rng.choice([0.0, 1.0, 2.0], 600),
        "c": rng.choice(["u", "v", "w"], 600),
        "d": rng.choice(["no", "yes"], 600),
        "prediction": rng.normal(size=600).round(1),
    }
    reference = prepare("ns/m", "1", schema, cells)
    names = [*cells]
    own, drawn = rng.integers(0, 600, 600), rng.integers(0, 600, 250)
    for test in statistics.DEFAULT_THRESHOLDS:
        places = [place for place, column in enumerate(reference.columns) if column.kind in statistics.ALLOWED_KINDS[test]]
        columns = [reference.columns[place] for place in places]
        sample = [evidence.cells_of(column, reference.codes[place]) for place, column in zip(places, columns, strict=True)]
        measuring = evidence.Measuring(columns, [test] * len(columns), sample)
        anew = prepare("ns/m", "1", schema, {name: cells[name][own] for name in names})
        for known, rows_of_reference in ((anew, own), (reference, None)):
            found = measuring.evidence(rows_of_reference, drawn, 100, [100, 170, 250])
            for look, end in enumerate((100, 170, 250)):
                for number, place in enumerate(places):
                    column = known.columns[place]
                    window = column.array(list(cells[names[place]][drawn[end - 100 : end]]))
                    assert found[look, number] == pytest.approx(evidence.measured(test, column, window), rel=1e-9, abs=1e-12), (test, place)


def test_missing_values_count_as_a_smaller_window_and_reference():
    rng = np.random.default_rng(25)
    schema = Schema((Feature("x", "numeric"),), "numeric", "t")
    cells = np.where(rng.uniform(size=3000) < 0.5, np.nan, rng.normal(size=3000))
    reference = prepare("ns/m", "1", schema, {"x": cells, "prediction": rng.normal(size=3000)})
    sample = [evidence.cells_of(column, codes) for column, codes in zip(reference.columns, reference.codes, strict=True)]
    measuring = evidence.Measuring(reference.columns, ["wasserstein"] * 2, sample)
    found = np.array([measuring.evidence(*(rng.integers(0, 3000, count) for count in (3000, 200)), 200, [200])[0] for _ in range(150)])
    gone, there = found.mean(axis=0)
    assert 1.5 < gone / there < 2.7
