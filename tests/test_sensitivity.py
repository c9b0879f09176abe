"""What the CUSUM of ranks is said to see is what it sees: closed forms against simulation."""

import math
from statistics import mean

import numpy as np
import pytest
from scipy.signal import lfilter

from inference.versions import Feature, Schema
from streaming.core.cusum.calibration import calibrate
from streaming.core.cusum.recursion import accumulate
from streaming.core.cusum.sensitivity import NEVER, Sensitivity
from streaming.core.cusum.signals import Signals
from streaming.core.reference import prepare

ROWS, HORIZON = 4000, 6000


def told(cells, events=100_000.0):
    """A sensitivity, the statistics it is of, and the reference of these columns (objects are categories)."""
    kinds = {name: "categorical" if np.asarray(values).dtype.kind == "U" else "numeric" for name, values in cells.items()}
    schema = Schema(tuple(Feature(name, kind) for name, kind in kinds.items()), "numeric", "t")
    reference = prepare("ns/m", "1", schema, {name: list(values) for name, values in cells.items()})
    statistics = calibrate(Signals(reference.columns), reference.codes, events)
    return Sensitivity(statistics, reference.codes), statistics, reference


def number_of(sensitivity, kind, category=""):
    return next(place for place, one in enumerate(sensitivity.every) if one.kind == kind and one.category in (category, ""))


def simulated(statistics, reference, number, changed, runs=24):
    """The mean delay of the statistics of one signal on changed rows, `changed(seed)` by column."""
    chosen = [place for place, signal in enumerate(statistics.signal) if signal == number]
    some = statistics.part(chosen)
    delays = []
    for seed in range(runs):
        cells = changed(np.random.default_rng((seed, 99)))
        codes = np.array([column.codes(column.array(list(cells[column.name]))) for column in reference.columns])
        steps = some.steps(statistics.signals.of(codes))
        accumulate(steps, np.zeros(len(chosen)))
        over = (steps >= some.limit).any(axis=1)
        delays.append(1 + int(over.argmax()) if over.any() else len(over))
    return mean(delays)


def autoregression(rng, rows, rho):
    return lfilter([1.0], [1.0, -rho], rng.normal(size=rows + 500) * math.sqrt(1.0 - rho**2))[500:]


@pytest.mark.parametrize("size", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_a_shift_is_seen_when_it_is_said_to_be(size, rho):
    reference = {
        name: autoregression(np.random.default_rng(number), ROWS * (1 if rho == 0.0 else 4), rho) for number, name in enumerate("abcd")
    }
    sensitivity, statistics, prepared = told(reference)
    shift = size if rho == 0.0 else 4.0 * size
    number = number_of(sensitivity, "level")
    expected = sensitivity.delay(number, shift)

    def rows(rng):
        return {"a": autoregression(rng, HORIZON, rho) + shift} | {name: np.zeros(HORIZON) for name in "bcd"}

    assert expected / 1.5 < simulated(statistics, prepared, number, rows) < expected * 1.5


def test_a_wider_spread_is_seen_when_it_is_said_to_be():
    sensitivity, statistics, prepared = told({name: np.random.default_rng(number).normal(size=ROWS) for number, name in enumerate("ab")})
    number = number_of(sensitivity, "spread")
    for factor in (1.3, 1.7):
        expected = sensitivity.delay(number, factor)
        seen = simulated(statistics, prepared, number, lambda rng, by=factor: {"a": by * rng.normal(size=HORIZON), "b": np.zeros(HORIZON)})
        assert expected / 1.5 < seen < expected * 1.5


def test_a_share_that_rises_is_seen_when_it_is_said_to_be():
    rng = np.random.default_rng(3)
    sensitivity, statistics, prepared = told({"c": rng.choice(["u", "v", "w"], ROWS, p=[0.6, 0.3, 0.1]), "a": rng.normal(size=ROWS)})
    for category, share in (("w", 0.15), ("w", 0.3), ("v", 0.5)):
        number = next(place for place, one in enumerate(sensitivity.every) if one.category == category)
        rest = (1.0 - share) / 2.0
        p = {"u": rest, "v": rest, "w": rest, category: share}
        expected = sensitivity.delay(number, share)
        seen = simulated(
            statistics, prepared, number, lambda rng, p=p: {"c": rng.choice([*p], HORIZON, p=[*p.values()]), "a": np.zeros(HORIZON)}
        )
        assert expected / 1.5 < seen < expected * 1.5


def test_missing_values_and_a_correlation_are_seen_when_they_are_said_to_be():
    sensitivity, statistics, prepared = told({name: np.random.default_rng(number).normal(size=ROWS) for number, name in enumerate("ab")})
    missing, pair = number_of(sensitivity, "missing"), number_of(sensitivity, "pair")

    def without(rng):
        return {"a": np.where(rng.uniform(size=HORIZON) < 0.05, np.nan, 0.0), "b": np.zeros(HORIZON)}

    def together(rng):
        first, second = rng.normal(size=(2, HORIZON))
        return {"a": first, "b": 0.6 * first + 0.8 * second}

    for number, size, rows in ((missing, 0.05, without), (pair, 0.6, together)):
        expected = sensitivity.delay(number, size)
        assert expected / 1.5 < simulated(statistics, prepared, number, rows) < expected * 1.5


def test_the_smallest_change_is_the_one_whose_delay_it_is():
    rng = np.random.default_rng(4)
    sensitivity, _, _ = told({"c": rng.choice(["u", "v", "w"], ROWS), "a": rng.normal(size=ROWS), "b": rng.normal(size=ROWS)})
    for number in range(len(sensitivity.every)):
        seen = sensitivity.sees(number, (100, 1000, 10_000))
        sizes = [seen.smallest[within] for within in (100, 1000, 10_000)]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] > seen.before
        for within, size in seen.smallest.items():
            if size != NEVER:
                # At less than this it never gets there, or takes longer.
                assert sensitivity.delay(number, size) <= within * 1.001
                assert sensitivity.delay(number, size - 1e-3 * (size - seen.before) - 1e-6) > within * 0.98
    assert sensitivity.smallest(number_of(sensitivity, "level"), 2) == NEVER


def test_a_larger_budget_sees_less_soon():
    cells = {name: np.random.default_rng(number).normal(size=ROWS) for number, name in enumerate("ab")}
    often, seldom = (told(cells, events)[0] for events in (1e4, 1e8))
    number = number_of(often, "level")
    assert often.delay(number, 0.5) < 0.7 * seldom.delay(number, 0.5)
    assert often.smallest(number, 1000) < seldom.smallest(number, 1000)


def test_where_hardly_anything_drives_it_a_statistic_gets_there_by_swinging():
    sensitivity, statistics, _ = told({name: np.random.default_rng(number).normal(size=ROWS) for number, name in enumerate("ab")})
    number = number_of(sensitivity, "level")
    lowest = sensitivity.smallest(number, 10**9)
    # A Brownian motion without drift takes the square of the height over its variance.
    height = statistics.limit[statistics.signal == number].max() + 1.166
    assert 0.3 * height**2 < sensitivity.delay(number, lowest) < 1.2 * height**2
