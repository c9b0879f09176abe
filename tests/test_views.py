"""Several windows and segments: each says what a monitor of its own would say, in the order in which they fall due."""

from collections import Counter
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import SettingsError
from inference.event import deterministic_id
from inference.versions import Feature, Schema
from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, DetectorLimit, EvidentlyLimit
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import prepare
from streaming.core.segments import Segments, shared
from streaming.core.time_window import TimeWindow
from streaming.core.view import View
from streaming.core.window import CountWindow, Rows
from streaming.detectors import Adwin

SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "categorical", "y")
COUNTRIES = ["de", "fr", "it", "lu"]


def drawn(rows, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    x[rng.random(rows) < 0.02] = np.nan
    x[rng.random(rows) < 0.01] = np.inf
    x[rng.random(rows) < 0.01] = -np.inf
    return {
        "x": x,
        "c": rng.choice(np.array([*COUNTRIES, None], dtype=object), rows, p=[0.5, 0.25, 0.15, 0.05, 0.05]),
        "prediction": rng.choice(np.array(["0", "1"], dtype=object), rows),
    }


SAMPLE = drawn(400, 1)
REFERENCE = prepare("default/m", "1", SCHEMA, SAMPLE)
KS = EvidentlyLimit("e", "ks", 0.05, columns=("x",))
PSI = EvidentlyLimit("psi", "psi", 0.2)
LIVELY = BudgetLimit("b", 25.0)
ADWIN = DetectorLimit("d", "adwin", Adwin(delta=0.3, clock=4).build)


def rows_of(count, seed=2, every=1.0):
    columns = drawn(count, seed)
    rng = np.random.default_rng(seed)
    columns["x"] += np.repeat(rng.choice([0.0, 0.0, 2.0, -3.0], count // 40 + 1), 40)[:count]
    times = 1e6 + np.arange(count) * every
    return Rows.of(REFERENCE.columns, [*columns.values()], np.arange(count), times, times + rng.uniform(-4.0, 4.0, count))


def said(spec, rows, cuts=(), *, reference=REFERENCE, restarts=False):
    counts = Counter()
    monitor, told, done = Monitor(spec, reference, 3, counts), [], 0
    for stop in [*cuts, len(rows)]:
        for verdict in monitor.take(rows.part(done, stop)):
            told.append((verdict, monitor.evidence(), monitor.drift_began(verdict)))
        done = stop
        if restarts:
            anew = Monitor(spec, reference, 3, counts)
            assert anew.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(monitor.state()))) == []
            monitor = anew
    return told, counts, monitor


def content(told):
    """What a verdict says, without its id, number and names."""
    return [
        (one.predictions, one.window, repr(one.findings), one.breached, one.due, repr(evidence), began) for one, evidence, began in told
    ]


SHORT = View("short", CountWindow(30, 7), (KS, LIVELY))
LONG = View("long", CountWindow(90, 20), (KS, PSI))
HOUR = View("hour", TimeWindow(60.0, 15.0, lateness=6.0, min_rows=5), (KS, ADWIN))
DAY = View("day", TimeWindow(200.0, 50.0, lateness=6.0, min_rows=5), (PSI,))
LATE = View("late", TimeWindow(60.0, 20.0, lateness=0.0, min_rows=5), (PSI,))
EVERY = [SHORT, LONG, HOUR, DAY, LATE]


def several(views, **more):
    return MonitorSpec(views[0].window, views[0].limits, Governor(), views[0].name, tuple(views[1:]), **more)


@settings(deadline=None, max_examples=8)
@given(
    views=st.permutations(EVERY).flatmap(lambda views: st.integers(1, len(views)).map(lambda count: views[:count])), seed=st.integers(0, 9)
)
def test_several_windows_say_what_each_would_say_alone(views, seed):
    rows = rows_of(300, seed)
    told, counts, monitor = said(several(views), rows)
    alone = [said(several([view]), rows) for view in views]
    for view, (own, _, _) in zip(views, alone, strict=True):
        assert content([one for one in told if one[0].of_window == view.name]) == content(own)
    assert [one.number for one, _, _ in told] == [*range(1, len(told) + 1)]
    fell = [one.fell.offset for one, _, _ in told]
    assert fell == sorted(fell), "in the order in which they fall due"
    assert len({one.id for one, _, _ in told}) == len(told)
    # Windows of one lateness wait together, and their late rows are counted once.
    late = {
        view.window.lateness: own["late"] for view, (_, own, _) in zip(views, alone, strict=True) if isinstance(view.window, TimeWindow)
    }
    assert counts["late"] == sum(late.values())
    assert len(monitor.state()["waiting"]) == len(late)


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 9), cuts=st.sets(st.integers(1, 299), max_size=4))
def test_cuts_and_restarts_change_nothing_for_many_windows_and_segments(seed, cuts):
    rows = rows_of(300, seed)
    spec = several(EVERY, segments=Segments("c", 3, 50))
    straight, counts, monitor = said(spec, rows)
    assert {one.segment for one, _, _ in straight} == {"", "c=de", "c=fr", "c=it"}
    for restarts in (False, True):
        other, counted, again = said(spec, rows, sorted(cuts), restarts=restarts)
        assert repr(other) == repr(straight)
        assert counted == counts
        assert msgspec.msgpack.encode(again.state()) == msgspec.msgpack.encode(monitor.state())


def sample_of(value):
    chosen = SAMPLE["c"] == value
    return {name: cells[chosen] for name, cells in SAMPLE.items()}


@pytest.mark.parametrize("seed", range(3))
def test_a_segment_says_what_a_monitor_fed_with_its_rows_alone_would_say(seed):
    rows = rows_of(500, seed)
    segments = Segments("c", 2, 50)
    told = said(several([SHORT, LONG], segments=segments), rows)[0]
    for value, share in (("de", 0.5), ("fr", 0.25)):
        chosen = np.flatnonzero(rows.cells[1] == value)
        reference = prepare("default/m", "1", SCHEMA, sample_of(value))
        own = Rows.of(reference.columns, [cells[chosen] for cells in rows.cells], rows.offsets[chosen], rows.times[chosen])
        share = len(sample_of(value)["x"]) / 400
        views = [replace(view, limits=tuple(shared(one, 0.25, share) for one in view.limits)) for view in (SHORT, LONG)]
        alone = said(several(views), own, reference=reference)[0]
        assert content([one for one in told if one[0].segment == f"c={value}"]) == content(alone)
        assert len(alone) > 10
    whole = said(several([replace(view, limits=tuple(shared(one, 0.5) for one in view.limits)) for view in (SHORT, LONG)]), rows)[0]
    assert content([one for one in told if not one[0].segment]) == content(whole)


def test_a_segments_windows_of_time_close_with_the_models_watermark():
    rows = rows_of(400)
    told = said(several([HOUR, DAY], segments=Segments("c", 1, 50)), rows)[0]
    chosen = np.flatnonzero(rows.cells[1] == "de")
    reference = prepare("default/m", "1", SCHEMA, sample_of("de"))
    own = Rows.of(
        reference.columns, [cells[chosen] for cells in rows.cells], rows.offsets[chosen], rows.times[chosen], rows.occurred[chosen]
    )
    alone = said(several([HOUR, DAY]), own, reference=reference)[0]
    for name in ("hour", "day"):
        here = [one for one in told if (one[0].of_window, one[0].segment) == (name, "c=de")]
        there = [one for one in alone if one[0].of_window == name]
        assert len(there) >= 5
        # Others' rows move the watermark too: the last slide may be due here and not there, and none falls due later.
        assert 0 <= len(here) - len(there) <= 1
        for (one, seen, _), (other, also, _) in zip(here, there, strict=False):
            assert (one.predictions, one.window, repr(one.findings), repr(seen)) == (
                other.predictions,
                other.window,
                repr(other.findings),
                repr(also),
            )
            assert one.fell.offset <= other.fell.offset


def test_segments_are_the_most_frequent_values_with_rows_enough_and_bounded():
    assert [one.name for one in Segments("c", 20, 2).of(REFERENCE)] == ["c=de", "c=fr", "c=it", "c=lu"]
    assert [one.name for one in Segments("c", 2, 2).of(REFERENCE)] == ["c=de", "c=fr"]
    counted = Counter(SAMPLE["c"].tolist())
    assert [one.name for one in Segments("c", 20, counted["it"]).of(REFERENCE)] == ["c=de", "c=fr", "c=it"]
    assert [one.name for one in Segments("c", 20, counted["it"] + 1).of(REFERENCE)] == ["c=de", "c=fr"]
    assert [one.name for one in Segments("prediction", 20, 2).of(REFERENCE)] in (
        ["prediction=0", "prediction=1"],
        ["prediction=1", "prediction=0"],
    )
    with pytest.raises(SettingsError, match="no such column nope; default/m has x, c, prediction"):
        Segments("nope").of(REFERENCE)
    with pytest.raises(SettingsError, match="x is numeric; a segment is one value of a categorical column"):
        Segments("x").of(REFERENCE)


def test_a_segments_reference_is_the_references_rows_of_its_value():
    for segment in Segments("c", 4, 2).of(REFERENCE):
        own = prepare("default/m", "1", SCHEMA, sample_of(segment.name.removeprefix("c=")))
        assert repr(segment.reference.columns) == repr(own.columns)
        assert (segment.reference.codes == own.codes).all()
        assert segment.share == own.codes.shape[1] / 400


def test_whole_and_segments_share_the_budget():
    """Of a model's predictions, as many false alarms as without segments: 1 in 100,000, half from the whole."""
    limit = BudgetLimit("b", 100_000.0)
    whole = shared(limit, 0.5).events
    of_segments = [shared(limit, 0.5 / 4, share).events / share for share in (0.5, 0.3, 0.1, 0.1)]
    assert 1.0 / whole + sum(1.0 / events for events in of_segments) == pytest.approx(1.0 / 100_000.0)
    by_time = BudgetLimit("b", None, 86_400.0)
    assert 1.0 / shared(by_time, 0.5).seconds + 4 / shared(by_time, 0.5 / 4, 0.1).seconds == pytest.approx(1.0 / 86_400.0)
    assert shared(KS, 0.5) is KS


def test_where_no_value_has_rows_enough_the_whole_keeps_its_budget():
    rows = rows_of(300)
    none = said(several([SHORT], segments=Segments("c", 20, 1000)), rows)
    assert content(none[0]) == content(said(several([SHORT]), rows)[0])


def test_a_segment_that_a_limit_does_not_fit_is_left_out_and_says_why():
    sample = {**SAMPLE, "x": np.where(SAMPLE["c"] == "fr", np.nan, SAMPLE["x"])}
    reference = prepare("default/m", "1", SCHEMA, sample)
    limit = DetectorLimit("d", "adwin", Adwin().build, columns=("x",))
    monitor = Monitor(MonitorSpec(CountWindow(30, 7), (limit,), Governor(), segments=Segments("c", 2, 50)), reference, 0)
    assert monitor.parts == {("", ""), ("", "c=de")}
    assert "cannot take x" in monitor.left_out["c=fr"]
    assert [one for one in monitor.status() if "left_out" in one] == [{"segment": "c=fr", "left_out": monitor.left_out["c=fr"]}]


def test_a_model_with_one_window_has_the_ids_it_always_had():
    rows = rows_of(100)
    for one, _, _ in said(MonitorSpec(CountWindow(30, 7), (KS,), Governor()), rows)[0]:
        assert one.id == deterministic_id("verdict", "default/m", "1", 3, one.window.last_offset, one.predictions)
        assert (one.of_window, one.segment, one.due, one.told_of) == ("", "", None, "")
        assert one.as_dict()["due"] is None


def test_every_setting_of_windows_and_segments_counts_in_the_fingerprint():
    specs = [
        several([SHORT]),
        several([replace(SHORT, name="other")]),
        several([SHORT, LONG]),
        several([LONG, SHORT]),
        several([SHORT, replace(LONG, limits=(PSI,))]),
        several([SHORT, replace(LONG, window=CountWindow(90, 21))]),
        several([SHORT], segments=Segments("c", 2, 50)),
        several([SHORT], segments=Segments("c", 3, 50)),
        *(
            several([replace(HOUR, window=replace(HOUR.window, **changed))])
            for changed in (
                {},
                {"length": 61.0},
                {"slide": 16.0},
                {"lateness": 7.0},
                {"min_rows": 6},
                {"max_rows": 99_999},
                {"ahead": 61.0},
            )
        ),
    ]
    prints = [Monitor(spec, REFERENCE, 0).state()["fingerprint"] for spec in specs]
    assert len({*prints}) == len(specs)
    assert Monitor(several([SHORT], segments=Segments("c", 2, 50)), REFERENCE, 1).state()["fingerprint"] == prints[6]
    told = Monitor(specs[2], REFERENCE, 0).restore(Monitor(specs[3], REFERENCE, 0).state())
    assert told == ["the window, the limits or the columns changed"]


@pytest.mark.parametrize("changed", [{"more": []}, {"waiting": []}, {"more": [{"window": {}, "limits": []}] * 4}])
def test_a_memory_of_other_windows_is_refused(changed):
    spec = several(EVERY)
    state = Monitor(spec, REFERENCE, 0).state()
    Monitor(spec, REFERENCE, 0).restore(state)
    with pytest.raises(ValueError):
        Monitor(spec, REFERENCE, 0).restore({**state, **changed})


def test_windows_and_limits_need_different_names():
    with pytest.raises(ValueError, match="windows need different names, not short, short"):
        several([SHORT, SHORT])
    with pytest.raises(ValueError, match="limits need different names, not e, e"):
        View("w", CountWindow(30, 7), (KS, KS))
    with pytest.raises(ValueError, match="window 'w' needs at least one limit"):
        View("w", CountWindow(30, 7), ())
    with pytest.raises(ValueError, match="at_most must be at least 1"):
        Segments("c", 0)
