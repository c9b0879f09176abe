"""Labelled errors: only a rise is drift, seldom a false one, whatever the scale; exact rates and lags; detectors that go on exactly."""

import pickle
from collections import Counter
from itertools import pairwise
from typing import get_args

import msgspec
import numpy as np
import pytest

from inference.errors import SnapshotError
from streaming.core.errors import FIRST, ErrorJudge, ErrorLimit
from streaming.core.labels import Joined
from streaming.core.made import Learned, Made
from streaming.core.verdict import Place
from streaming.detectors import Ddm, Eddm, ErrorAdwin, ErrorDetectorSpec, ErrorPageHinkley, HddmA, HddmW

UNION = get_args(get_args(ErrorDetectorSpec)[0])
DETECTORS = [ErrorAdwin(), Ddm(), Eddm(), HddmA(), HddmW(), ErrorPageHinkley()]
by_kind = pytest.mark.parametrize("detector", DETECTORS, ids=lambda one: one.kind)


def limit(detector=DETECTORS[0], **bounds):
    return ErrorLimit(detector.kind, lambda: detector.build(0, 1), detector.settings, detector.binary, **bounds)


def joined(values, truths, *, offset=0, time=0.0, lag=1.0, learned=None):
    first = Learned(False, [-1] * len(values), [0.0] * len(values))
    return Joined(Made("s", offset, time, values), learned or first, truths, lag, learned is None)


def feed(judge, errors, first=0, counts=None):
    """Errors one label at a time, each of a prediction at its own offset; the labels at which a judgement fell due, with it."""
    counts = Counter() if counts is None else counts
    said = []
    for number, error in enumerate(errors, first):
        prediction, truth = (0.0, float(error)) if judge._numeric else ("0", "1" if error else "0")
        if judge.take(joined([prediction], [truth], offset=10 * number, time=float(number)), counts):
            said.append((number, judge.judge()))
    return said


def coins(share, count, seed):
    return np.random.default_rng(seed).random(count) < share


def chain(share, count, rho, seed):
    """Zeros and ones of which each is, with probability `rho`, the one before it: their autocorrelation."""
    rng = np.random.default_rng(seed)
    fresh, anew = rng.random(count) < share, rng.random(count) >= rho
    anew[0] = True
    return fresh[np.maximum.accumulate(np.where(anew, np.arange(count), 0))]


def rises(said):
    return [number for number, finding in said if finding.over]


def test_every_detector_of_the_union_is_tried_here():
    assert [type(one) for one in DETECTORS] == list(UNION)


@by_kind
def test_a_detector_hears_of_a_rise_and_not_of_a_fall(detector):
    rise, fall = [*coins(0.1, 4000, 1), *coins(0.6, 1000, 2)], [*coins(0.6, 4000, 1), *coins(0.1, 3000, 2)]
    risen = rises(feed(ErrorJudge(limit(detector), "y", numeric=False), rise))
    assert 4000 <= risen[0] < 4700
    assert rises(feed(ErrorJudge(limit(detector), "y", numeric=False), fall)) == []


@by_kind
def test_the_verdict_tells_from_what_to_what_and_since_when(detector):
    judge = ErrorJudge(limit(detector), "y", numeric=False)
    number, finding = [one for one in feed(judge, [*coins(0.05, 8000, 3), *coins(0.5, 1000, 4)]) if one[1].over][-1]
    assert (finding.limit, finding.feature, finding.test) == ("errors", "y", detector.kind)
    assert finding.threshold == pytest.approx(0.05, abs=0.02), "before"
    assert finding.score == pytest.approx(0.5, abs=0.1), "after"
    assert finding.signal == f"error up {finding.threshold:.2g} -> {finding.score:.2g}"
    assert abs(judge.began.offset - 80_000) <= 10 * 64
    assert judge.began.time == judge.began.offset / 10
    assert judge.explanation(finding).moved[0][1:] == (finding.threshold, finding.score)
    assert number == 8999


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_quiet_labels_seldom_raise_a_false_alarm(share, rho):
    """`ErrorAdwin` states what was measured over 1,000,000 of each; here are 60,000."""
    judge = ErrorJudge(limit(size=100), "y", numeric=False)
    over = [False, *(finding.over for _, finding in feed(judge, chain(share, 60_000, rho, 7)))]
    assert sum(now and not before for before, now in pairwise(over)) <= (1 if rho else 0)


@pytest.mark.parametrize(("before", "after", "median"), [(0.05, 0.1, 1000), (0.1, 0.2, 450)])
def test_a_doubled_error_is_seen(before, after, median):
    delays = []
    for seed in range(7):
        said = feed(ErrorJudge(limit(), "y", numeric=False), [*coins(before, 10_000, seed), *coins(after, 4000, seed + 100)])
        delays.append(rises(said)[0] - 10_000)
    assert min(delays) >= 0
    assert np.median(delays) <= median


@by_kind
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_errors_of_numbers_are_seen_whatever_their_scale(detector, scale):
    rng = np.random.default_rng(5)
    quiet, worse = rng.normal(0, scale, 5000), rng.normal(0, 4 * scale, 1500)
    judge = ErrorJudge(limit(detector), "y", numeric=True)
    assert rises(feed(judge, quiet)) == []
    assert rises(feed(judge, worse, 5000)) != []


def test_outliers_among_the_errors_of_numbers_neither_trip_nor_mask():
    rng = np.random.default_rng(6)
    quiet, worse = rng.normal(0, 1, 4000), rng.normal(0, 3, 1500)
    for values in (quiet, worse):
        values[::97] = 1e300
        values[::89] = np.inf
    judge = ErrorJudge(limit(), "y", numeric=True)
    counts = Counter()
    assert rises(feed(judge, quiet, counts=counts)) == []
    assert rises(feed(judge, worse, 4000)) != []
    assert counts["labelled"] == 4000
    assert np.isfinite(judge.status()["error_since_takeover"])


def test_nothing_is_judged_of_numbers_before_there_are_200():
    judge = ErrorJudge(limit(), "y", numeric=True)
    errors = list(np.random.default_rng(7).normal(0, 1, FIRST + 60))
    assert feed(judge, errors[: FIRST - 1]) == []
    ((number, finding),) = feed(judge, errors[FIRST - 1 : FIRST], FIRST - 1)
    assert (number, finding.over) == (FIRST - 1, False)
    assert finding.score == pytest.approx(0.5), "they are ranked among themselves"


def test_a_rise_counts_for_so_many_labels_and_on_until_it_is_gone():
    judge = ErrorJudge(limit(size=200, slide=20), "y", numeric=False)
    said = feed(judge, [*coins(0.05, 3000, 8), *coins(0.4, 900, 9), *coins(0.05, 1200, 10)])
    over = rises(said)
    assert 3000 < over[0] < 3200
    assert {number for number, _ in said if over[0] <= number <= 3900} == set(over) & set(range(3901)), "as long as the error is high"
    assert 3900 + 100 < over[-1] < 3900 + 400, "until the newest 200 are as before"
    assert np.isnan(said[-1][1].threshold)
    short = feed(
        ErrorJudge(limit(size=200, slide=20), "y", numeric=False), [*coins(0.05, 3000, 8), *coins(0.9, 40, 9), *coins(0.05, 900, 10)]
    )
    assert rises(short)[-1] - rises(short)[0] >= 180, "and for 200 in any case"


def test_a_further_rise_is_measured_by_what_was_before_the_first():
    judge = ErrorJudge(limit(), "y", numeric=False)
    said = feed(judge, [*coins(0.05, 4000, 11), *coins(0.3, 1500, 12), *coins(0.8, 400, 13)])
    assert {round(finding.threshold, 6) for _, finding in said if finding.over} == {round(said[-1][1].threshold, 6)}
    assert said[-1][1].threshold < 0.08
    assert judge.began.offset < 42_000


def test_labels_of_much_older_predictions_do_not_move_the_beginning():
    judge = ErrorJudge(limit(), "y", numeric=False)
    feed(judge, coins(0.05, 4000, 14))
    for number, error in enumerate(coins(0.5, 400, 15), 4000):
        offset = 3 if number % 50 == 0 else 10 * number
        judge.take(joined(["0"], ["1" if error else "0"], offset=offset), Counter())
    assert judge.over
    assert judge.began.offset > 38_000
    assert judge.oldest == Place(3, 0.0)


def test_rates_and_lags_are_exact():
    judge = ErrorJudge(limit(size=10, slide=5), "y", numeric=False)
    counts = Counter()
    lags = [*range(1, 31)]
    for number, lag in enumerate(lags):
        judge.take(joined(["1", "0"], ["1", "1" if number % 3 == 0 else "0"], offset=number, lag=float(lag)), counts)
    assert judge.status() == {
        "labelled": 60,
        "error": 0.1,
        "of": 10,
        "error_since_takeover": 10 / 60,
        "lag_median": float(np.quantile(lags[-10:], 0.5)),
        "lag_p95": float(np.quantile(lags[-10:], 0.95)),
        "detector": "adwin",
        "over": False,
        "unknown": "",
    }
    assert counts == {"labelled": 60}


def test_a_corrected_label_puts_the_rates_right_and_is_one_more_value_to_the_detector():
    judge, counts = ErrorJudge(limit(size=10, slide=5), "y", numeric=False), Counter()
    learned = [Learned(False, [-1], [0.0]) for _ in range(12)]
    for one in learned:
        judge.take(joined(["1"], ["1"], learned=one), counts)
    for one, truth in ((11, "0"), (11, "0"), (0, "0"), (5, None), (5, "1")):
        judge.take(joined(["1"], [truth], learned=learned[one]), counts)
    assert counts == {"labelled": 12, "corrected": 2, "duplicates": 2, "rows_without_label": 1}
    status = judge.status()
    assert (status["labelled"], status["error"], status["error_since_takeover"]) == (12, 0.1, 2 / 12), "the first is not among the last 10"
    assert judge.state()["fed"] == 14


def test_what_has_no_error_is_counted_and_not_fed():
    judge, counts = ErrorJudge(limit(), "y", numeric=True), Counter()
    assert not judge.take(joined([None, float("nan"), 1.0, float("inf"), 2.0], [1.0, 1.0, float("nan"), None, 3.0]), counts)
    assert counts == {"rows_of_wrong_kind": 3, "rows_without_label": 1, "labelled": 1}
    categories = ErrorJudge(limit(), "y", numeric=False)
    categories.take(joined([None, "1"], ["1", "0"]), counts)
    assert (counts["rows_of_wrong_kind"], categories.rates.labels) == (4, 1)


def test_a_broken_detector_is_unknown_and_the_rates_go_on():
    class Broken:
        changed = None

        def feed(self, values):
            raise ZeroDivisionError("inside")

    broken = ErrorLimit("broken", Broken, slide=5, size=10)
    judge = ErrorJudge(broken, "y", numeric=False)
    said = feed(judge, [True] * 10)
    assert [finding.over for _, finding in said] == [False, False]
    assert all("ZeroDivisionError" in finding.unknown and np.isnan(finding.score) for _, finding in said)
    assert judge.status()["error"] == 1.0
    anew = ErrorJudge(broken, "y", numeric=False)
    assert anew.restore(judge.state()) == ""
    assert anew.state() == judge.state()


@by_kind
@pytest.mark.parametrize("numeric", [False, True])
def test_a_restored_judge_goes_on_exactly(detector, numeric):
    rng = np.random.default_rng(16)
    errors = [*(rng.normal(0, 1, 900)), *(rng.normal(0, 6, 500)), *(rng.normal(0, 1, 600))] if numeric else [
        *coins(0.05, 900, 17), *coins(0.7, 500, 18), *coins(0.05, 600, 19)
    ]  # fmt: skip
    bounds = limit(detector, size=100, slide=10)
    straight, restarted = ErrorJudge(bounds, "y", numeric=numeric), ErrorJudge(bounds, "y", numeric=numeric)
    over = 0
    for start in range(0, len(errors), 37):
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(restarted.state()))
        restarted = ErrorJudge(bounds, "y", numeric=numeric)
        assert restarted.restore(state) == ""
        part = errors[start : start + 37]
        said = feed(straight, part, start)
        assert repr(feed(restarted, part, start)) == repr(said)
        assert restarted.state() == straight.state()
        over += len(rises(said))
    assert over or (numeric and detector.kind in ("eddm", "ddm"))


@by_kind
def test_a_restored_detector_takes_nothing_but_what_it_is_made_of(detector):
    built = detector.build(0, 1)
    built.feed([float(error) for error in coins(0.3, 700, 20)])
    state = built.state()
    anew = detector.build(0, 1)
    anew.restore(state)
    assert anew.state() == state
    for other in DETECTORS:
        if other.kind != detector.kind:
            with pytest.raises(SnapshotError, match=r"names (river|builtins|copyreg)|of a \w+, not of a"):
                other.build(0, 1).restore(state)
    with pytest.raises(SnapshotError, match=r"names"):
        anew.restore(state.partition(b"\n")[0] + b"\n" + pickle.dumps(Counter))
    assert anew.state() == state


def test_the_memory_is_bounded():
    judge = ErrorJudge(limit(size=50, slide=10), "y", numeric=True)
    sizes = []
    for start in range(0, 20_000, 5000):
        feed(judge, np.random.default_rng(start).normal(0, 1, 5000), start)
        sizes.append(len(msgspec.msgpack.encode(judge.state())))
    assert max(sizes) < 1.2 * min(sizes) < 20_000


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda one: one.kind)
def test_every_setting_counts_in_the_fingerprint(detector):
    limits = [limit(detector), limit(detector, size=501), limit(detector, slide=51)]
    for name, value in detector:
        if name != "kind":
            other = type(detector)(**{**detector.model_dump(), name: value / 2 if isinstance(value, float) else value + 1})
            limits.append(limit(other))
    assert len({one.fingerprint for one in limits}) == len(limits) == len(type(detector).model_fields) + 2
    assert limit(detector).fingerprint == limits[0].fingerprint


@pytest.mark.parametrize("wrong", [{"size": 10, "slide": 11}, {"slide": 0}, {"max_waiting": 0}, {"max_age": 0.0}])
def test_a_limit_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"errors\."):
        limit(**wrong)


def test_after_a_fall_a_rise_is_measured_by_what_came_after_the_fall():
    judge = ErrorJudge(limit(), "y", numeric=False)
    said = feed(judge, [*coins(0.7, 3000, 21), *coins(0.1, 3000, 22), *coins(0.4, 800, 23)])
    assert said[-1][1].threshold == pytest.approx(0.1, abs=0.03)


def test_a_small_rise_counts_for_so_many_labels_though_the_newest_could_not_tell_it():
    judge = ErrorJudge(limit(size=100, slide=10), "y", numeric=False)
    feed(judge, coins(0.3, 1000, 24))
    small = {**judge.state(), "before": 0.5, "changed": 100, "detected": 1000}
    anew = ErrorJudge(limit(size=100, slide=10), "y", numeric=False)
    anew.restore(small)
    assert rises(feed(anew, coins(0.3, 300, 25), 1000)) == [*range(1009, 1099, 10)]


def test_a_detector_of_right_and_wrong_is_told_of_errors_among_the_largest_tenth():
    judge = ErrorJudge(limit(Ddm()), "y", numeric=True)
    feed(judge, np.random.default_rng(26).normal(0, 1, 1000))
    told = [one.value for one in judge._told]
    assert set(told) == {0.0, 1.0}
    assert np.mean(told) == pytest.approx(0.1, abs=0.06)
