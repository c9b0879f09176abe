"""Windows of time: what a brute-force model says of them, in whatever order, cuts and restarts the rows come."""

import math
from collections import Counter
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, DetectorLimit, EvidentlyLimit
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import prepare
from streaming.core.time_window import TimeWindow
from streaming.core.verdict import Place
from streaming.core.window import CountWindow, Rows
from streaming.detectors import Adwin

SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "numeric", "y")


def drawn(rows, seed=1):
    rng = np.random.default_rng(seed)
    return {"x": [*rng.normal(size=rows)], "c": [*rng.choice(["a", "b"], rows)], "prediction": [*rng.normal(size=rows)]}


REFERENCE = prepare("default/m", "1", SCHEMA, drawn(120))
KS = EvidentlyLimit("e", "ks", 1e-3, columns=("x",))
MANY_ALARMS = BudgetLimit("b", 25.0)


def rows_of(occurred, times=None, seed=2):
    """Rows of which x is their number plus something that moves, so that windows can be told by their cells."""
    count = len(occurred)
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.choice([0.0, 0.0, 2.0, -3.0], count // 40 + 1), 40)[:count]
    cells = [rng.normal(size=count) + level, rng.choice(np.array(["a", "b", "z", None], dtype=object), count), rng.normal(size=count)]
    times = occurred if times is None else times
    return Rows.of(REFERENCE.columns, cells, np.arange(count), np.array(times, dtype=float), np.array(occurred, dtype=float))


def said(spec, rows, cuts=(), *, restarts=False):
    """All verdicts with their evidence and where drift began, the counts, and the monitor."""
    counts = Counter()
    monitor, told, done = Monitor(spec, REFERENCE, 3, counts), [], 0
    for stop in [*cuts, len(rows)]:
        for verdict in monitor.take(rows.part(done, stop)):
            assert monitor.last is verdict
            told.append((verdict, monitor.evidence(), monitor.drift_began(verdict)))
        done = stop
        if restarts:
            anew = Monitor(spec, REFERENCE, 3, counts)
            assert anew.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(monitor.state()))) == []
            monitor = anew
    return told, counts, monitor


def watched(window, *limits):
    return MonitorSpec(window, limits or (KS,), Governor())


def model(spec, occurred):
    """The slides of rows that are none of them late: (boundary, numbers of the window's rows, number of the row that made it due); how
    many slides had too few rows; and how many rows were crowded out."""
    newest = np.maximum.accumulate(np.array(occurred))
    watermarks = newest - spec.lateness
    order = sorted(range(len(occurred)), key=lambda number: (occurred[number], number))
    released = [number for number in order if occurred[number] < watermarks[-1]]
    slides, few, crowded = [], 0, 0
    bounds = sorted({(math.floor(occurred[number] / spec.slide) + 1) * spec.slide for number in released})
    for bound in bounds:
        if bound <= watermarks[-1]:
            inside = [number for number in released if bound - spec.length <= occurred[number] < bound][-spec.max_rows :]
            if len(inside) < spec.min_rows:
                few += 1
            else:
                slides.append((bound, inside, int(np.argmax(watermarks >= bound))))
    for place, number in enumerate(released):
        if place >= spec.max_rows:
            crowded += occurred[released[place - spec.max_rows]] >= occurred[number] - spec.length
    return slides, few, crowded


WINDOWS = st.tuples(st.sampled_from([1.0, 5.0, 7.0, 30.0]), st.integers(1, 6), st.sampled_from([0.0, 4.0, 20.0])).flatmap(
    lambda one: st.builds(
        TimeWindow,
        length=st.just(one[0] * one[1]),
        slide=st.just(one[0]),
        lateness=st.just(one[2]),
        min_rows=st.integers(1, 6),
        max_rows=st.sampled_from([6, 12, 100_000]),
    )
)


def arrivals(spec, gaps, delays):
    """Event times in an order of arrival in which none is late: each comes at most `lateness` behind a newer one."""
    times = np.cumsum(gaps).astype(float) + 1e6
    late = np.array(delays, dtype=float) * spec.lateness
    return times[np.argsort(times + late, kind="stable")]


@settings(deadline=None, max_examples=60)
@given(spec=WINDOWS, steps=st.lists(st.tuples(st.sampled_from([0, 0, 1, 2, 3, 40, 500]), st.floats(0, 1)), min_size=1, max_size=150))
def test_each_verdicts_window_is_what_a_brute_force_model_says(spec, steps):
    # So many may wait that none goes on early here.
    occurred = arrivals(spec, *zip(*steps, strict=True))
    rows = rows_of(occurred, np.full(len(occurred), 2e6) + np.arange(len(occurred)))
    told, counts, monitor = said(watched(replace(spec, ahead=1e7)), rows)
    if counts["early"]:
        return
    slides, few, crowded = model(spec, occurred.tolist())
    assert [verdict.due for verdict, _, _ in told] == [Place(due, 2e6 + due) for _, _, due in slides]
    for (verdict, evidence, began), (_, inside, _) in zip(told, slides, strict=True):
        assert evidence["x"] == tuple(rows.cells[0][inside].tolist())
        assert evidence["c"] == tuple(rows.cells[1][inside].tolist())
        span = verdict.window
        assert (span.first_offset, span.last_offset) == (min(inside), max(inside))
        assert (span.first_time, span.last_time) == (2e6 + min(inside), 2e6 + max(inside))
        assert span.first_offset <= began.first_offset <= began.last_offset == span.last_offset
    assert (counts["few_rows"], counts["crowded_out"], counts["late"], counts["ahead"]) == (few, crowded, 0, 0)
    assert monitor.predictions == len(rows)
    assert len({verdict.id for verdict, _, _ in told}) == len(told)


STREAMS = st.lists(
    st.tuples(st.sampled_from([0, 0, 1, 1, 2, 60]), st.one_of(st.integers(-3, 3), st.sampled_from([-400, 90, math.nan]))),
    min_size=30,
    max_size=200,
)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(spec=WINDOWS, steps=STREAMS, cuts=st.sets(st.integers(1, 199), max_size=8))
def test_cuts_and_restarts_change_nothing(spec, steps, cuts):
    times = np.cumsum([step for step, _ in steps]) + 1e6
    rows = rows_of([time + jitter for time, (_, jitter) in zip(times, steps, strict=True)], times)
    detector = DetectorLimit("d", "adwin", Adwin(delta=0.3, clock=4).build)
    whole = watched(spec, KS, MANY_ALARMS, detector)
    straight, counts, monitor = said(whole, rows)
    cuts = [cut for cut in sorted(cuts) if cut < len(rows)]
    for restarts in (False, True):
        other, counted, again = said(whole, rows, cuts, restarts=restarts)
        assert repr(other) == repr(straight)
        assert counted == counts
        assert msgspec.msgpack.encode(again.state()) == msgspec.msgpack.encode(monitor.state())


@settings(deadline=None, max_examples=25)
@given(spec=WINDOWS, steps=st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.floats(0, 1)), min_size=40, max_size=150))
def test_rows_out_of_order_within_lateness_are_judged_as_those_in_order(spec, steps):
    """All limits: those that judge after each row see them in order too."""
    if spec.max_rows < 100:
        spec = replace(spec, max_rows=1000)
    occurred = arrivals(spec, *zip(*steps, strict=True))
    # One in front of all, far behind, so that both end with the same watermark.
    occurred = np.append(occurred, occurred.max() + 1000.0)
    shuffled = rows_of(occurred, np.full(len(occurred), 2e6))
    ordered = shuffled.pick(np.argsort(occurred, kind="stable"))
    both = [said(watched(replace(spec, ahead=1e7), KS, MANY_ALARMS), rows) for rows in (shuffled, ordered)]
    assert both[0][1] == both[1][1]
    for (one, seen, _), (other, also, _) in zip(both[0][0], both[1][0], strict=True):
        assert (one.predictions, repr(one.findings), one.breached, seen) == (other.predictions, repr(other.findings), other.breached, also)


@pytest.mark.parametrize(
    "window", [TimeWindow(49.0, 7.0, min_rows=1), TimeWindow(490.0, 7.0, min_rows=1, max_rows=50)], ids=["time", "full"]
)
@pytest.mark.parametrize("seed", range(2))
def test_an_alarm_counts_as_long_as_its_row_is_in_the_window(seed, window):
    """With a row a second, a window of 49 seconds holds at each row what one of 50 rows does; and so does one that is full with 50."""
    rows = rows_of(np.arange(600.0), seed=seed)
    by_time = said(watched(window, MANY_ALARMS), rows)[0]
    by_count = said(watched(CountWindow(50, 7), MANY_ALARMS), rows)[0]
    asked = [(verdict.predictions, repr(verdict.findings), began) for verdict, _, began in by_time if verdict.predictions % 7]
    counted = {verdict.predictions: (repr(verdict.findings), began) for verdict, _, began in by_count if verdict.drift}
    between = {verdict.predictions for verdict, _, _ in by_count if verdict.predictions < 50 or (verdict.predictions - 50) % 7}
    numbers = {number for number, _, _ in asked}
    assert len(numbers) >= 4
    assert {number for number in between if number % 7} == {number for number in numbers if number in between}
    assert all(counted[number] == (findings, began) for number, findings, began in asked)
    # At a slide the window is [T - 49, T): rows T - 49 to T - 1.
    alarms = [verdict.predictions for verdict, _, _ in by_time if verdict.predictions % 7]
    for verdict, _, _ in by_time:
        if not verdict.drift:
            assert not [row for row in alarms if verdict.predictions - 49 < row <= verdict.predictions]


class Tall:
    """Detects each value of at least 0.9."""

    def feed(self, values):
        return [place for place, value in enumerate(values) if value >= 0.9]

    def state(self):
        return b""

    def restore(self, state):
        pass


def test_a_detection_counts_as_long_as_its_row_is_in_the_window():
    occurred = np.cumsum(np.random.default_rng(5).choice([1.0, 2.0, 9.0], 300))
    rows = rows_of(occurred)
    limit = DetectorLimit("d", "tall", lambda seed, signals: Tall(), columns=("x",))
    ranks = REFERENCE.columns[0].ranks(rows.codes[0])
    told = said(watched(TimeWindow(60.0, 10.0, min_rows=2), limit), rows)[0]
    tall = {number for number, rank in enumerate(ranks) if rank >= 0.9 or abs(2.0 * rank - 1.0) >= 0.9}
    assert len(told) > 30
    for verdict, _, _ in told:
        span = verdict.window
        inside = tall & {*range(span.first_offset, span.last_offset + 1)}
        assert verdict.findings[0].score == len(inside)
    never, counts, monitor = said(watched(TimeWindow(60.0, 10.0, min_rows=1000), limit), rows)
    assert not never
    assert counts["few_rows"] > 30
    (remembered,) = monitor.state()["limits"][0]["detected"]
    assert len(remembered) < len(tall) / 2, "where no verdict falls due it is forgotten too"


def test_stretches_without_traffic_cost_nothing():
    window = TimeWindow(10.0, 1.0, min_rows=1)
    years = np.arange(5) * 365 * 86_400.0
    occurred = (years[:, None] + np.arange(3.0)).ravel()
    told, counts, _ = said(watched(window), rows_of(occurred))
    # Each row makes a slide; that of the last is still to come.
    assert len(told) == len(occurred) - 1
    assert not counts


def test_a_time_far_ahead_does_not_push_the_watermark_away():
    times = np.arange(100.0) + 1e6
    occurred = times.copy()
    occurred[40] = 4e9
    told, counts, _ = said(watched(TimeWindow(20.0, 10.0, lateness=5.0, min_rows=5)), rows_of(occurred, times))
    assert counts == {"ahead": 1}
    assert [verdict.predictions for verdict, _, _ in told] == [10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_late_rows_are_counted_and_left_out():
    times = np.arange(60.0)
    occurred = times.copy()
    occurred[[30, 45]] -= 15.0
    occurred[50] -= 5.0
    told, counts, monitor = said(watched(TimeWindow(10.0, 10.0, lateness=10.0, min_rows=5)), rows_of(occurred, times))
    assert counts == {"late": 2}
    assert [len(evidence["x"]) for _, evidence, _ in told] == [10, 10, 10, 9]
    assert monitor.predictions == 60


def test_memory_is_bounded_whatever_comes():
    window = TimeWindow(86_400.0, 3600.0, lateness=3600.0, max_rows=1000)
    counts = Counter()
    monitor = Monitor(watched(window), REFERENCE, 0, counts)
    for start in range(0, 40_000, 400):
        for _ in monitor.take(rows_of((start + np.arange(400.0)) / 10.0)):
            pass
        (view,) = monitor.status()
        assert view["in_window"] <= 1000
        assert monitor._views[0].window._room <= 4 * 1000
        assert next(iter(monitor._waiting.values())).rows <= 1000
        assert len(msgspec.msgpack.encode(monitor.state())) < 200_000
    assert counts["early"] > 10_000
    assert counts["crowded_out"] > 10_000


@pytest.mark.parametrize(
    ("window", "says"),
    [
        ((10.0, 11.0), "slide must be from 1 second to window.length"),
        ((10.0, 0.5), "slide must be from 1 second"),
        ((10.0, 5.0, -1.0), "lateness must not be negative"),
        ((10.0, 5.0, 0.0, 0), "min_rows must be from 1"),
        ((10.0, 5.0, 0.0, 30, 20), "min_rows must be from 1 to window.max_rows"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(window, says):
    with pytest.raises(ValueError, match=says):
        TimeWindow(*window)


def test_slides_begin_at_multiples_whatever_rounding_does():
    spec = TimeWindow(10.0, 1.1)
    times = np.concatenate([np.arange(1, 2000) * 1.1, np.nextafter(np.arange(1, 2000) * 1.1, 0.0)])
    bounds = spec.boundaries(np.sort(times))
    assert (bounds > np.sort(times)).all()
    assert (np.diff(bounds) >= 0).all()
    assert (bounds - np.sort(times) < 1.1 + 1e-9).all()


STATE = said(watched(TimeWindow(50.0, 5.0, min_rows=1)), rows_of(np.arange(20.0)))[2].state()


@pytest.mark.parametrize(
    "changed",
    [{"rows": 2}, {"occurred": b"\0" * 7}, {"occurred": STATE["window"]["occurred"][:16]}, {"occurred": STATE["window"]["occurred"][::-1]}],
)
def test_a_window_that_does_not_fit_is_refused(changed):
    spec = watched(TimeWindow(50.0, 5.0, min_rows=1))
    Monitor(spec, REFERENCE, 3).restore(STATE)
    with pytest.raises(ValueError):
        Monitor(spec, REFERENCE, 3).restore({**STATE, "window": {**STATE["window"], **changed}})
