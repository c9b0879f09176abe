"""One change, one trigger: an incident lasts as long as its change, however the statistic crosses its limit meanwhile."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, EvidentlyLimit
from streaming.core.monitor import MonitorSpec
from streaming.core.reference import prepare
from streaming.core.verdict import Decision, Span, Verdict
from streaming.core.window import CountWindow
from streaming.testing import finished, prediction, promotion, records

SIZE, SLIDE = 10, 5


def verdict(number, *, drift, part=("", "")):
    """The number-th of windows of 10 rows, each 5 rows behind the one before, a row a second."""
    last = SIZE + SLIDE * number - 1
    span = Span(0, last - SIZE + 1, last, float(last - SIZE + 1), float(last))
    return Verdict(f"{part}{number}", "default/m", "1", number, 1000, span, (), ("ks",) if drift else (), *part)


def judged(governing, drifts, first=0, part=("", "")):
    said = []
    for number, drift in enumerate(drifts, first):
        one = verdict(number, drift=drift, part=part)
        said.append(governing.judge(one, one.window))
    return said


def acting(decisions):
    return [decision for decision in decisions if decision is not None and decision.action != "hold"]


def test_flapping_around_the_limit_is_one_incident():
    governing = Governor(1, 1, cooldown=0.0, max_run=1e9, retrain=False).build()
    said = judged(governing, [True, False] * 20)
    assert [decision.action for decision in said if decision] == ["alert"] + ["hold"] * 19
    assert {decision.incident for decision in said if decision} == {governing.incident}


def test_an_incident_is_over_after_a_whole_window_of_rows_behind_the_last_breach():
    governing = Governor(1, 1, retrain=False).build()
    judged(governing, [True])
    judged(governing, [False], first=1)
    assert governing.incident, "half of this window's rows were in the one that was over"
    judged(governing, [False], first=2)
    assert governing.incident == ""
    assert len(acting(judged(governing, [True], first=3))) == 1


def test_more_quiet_verdicts_may_be_asked_for_than_a_window_has_slides():
    governing = Governor(1, 4, retrain=False).build()
    judged(governing, [True, False, False, False])
    assert governing.incident
    judged(governing, [False], first=4)
    assert governing.incident == ""


def test_another_window_that_is_still_over_keeps_the_incident_open():
    governing = Governor(1, 1, retrain=False).build()
    (first, *_) = judged(governing, [True], part=("long", ""))
    judged(governing, [True, False, False, False])
    assert governing.incident == first.incident
    judged(governing, [False, False], first=1, part=("long", ""))
    assert governing.incident == ""


def test_each_further_run_of_an_incident_waits_twice_as_long():
    governing = Governor(1, 1, cooldown=100.0, max_run=1e9).build()
    starts = []
    for second in range(0, 40_000, 10):
        one = Verdict(f"v{second}", "default/m", "1", second, 1000, Span(0, second, second, float(second), float(second)), (), ("ks",))
        decision = governing.judge(one, one.window)
        if decision and decision.action == "retrain":
            starts.append(second)
            governing.finished(decision.run_id)
    assert np.diff(starts).tolist() == [100, 200, 400, 800, 1600, 3200, 6400, 12_800]


def test_the_wait_never_exceeds_a_day_or_the_cool_down():
    for cooldown, longest in ((600.0, 86_400.0), (3 * 86_400.0, 3 * 86_400.0)):
        governing, now, waits = Governor(1, 1, cooldown=cooldown, max_run=1e12).build(), 0.0, []
        for number in range(14):
            while True:
                one = Verdict(f"v{now}", "default/m", "1", number, 1000, Span(0, number, number, now, now), (), ("ks",))
                decision = governing.judge(one, one.window)
                if decision and decision.action == "retrain":
                    break
                now += cooldown
            governing.finished(decision.run_id)
            waits.append(now)
        assert max(np.diff(waits)) == longest


def test_the_next_incident_waits_no_longer_than_the_cool_down():
    governing = Governor(1, 1, cooldown=20.0, max_run=1e9).build()
    starts = []
    for number, drift in enumerate([True] * 20 + [False] * 3 + [True] * 20):
        decision = governing.judge(verdict(number, drift=drift), Span(0, 0, 0, 0.0, 0.0))
        if decision and decision.action == "retrain":
            starts.append((number, decision.incident))
            governing.finished(decision.run_id)
    waits = np.diff([number for number, _ in starts]) * SLIDE
    assert len({incident for _, incident in starts}) == 2
    assert waits.tolist() == [20, 40, 55, 20, 40]


@settings(deadline=None)
@given(
    drifts=st.lists(st.booleans(), min_size=1, max_size=60),
    cut=st.integers(0, 60),
    parts=st.lists(st.sampled_from(["", "long"]), min_size=60),
)
def test_a_restored_governor_goes_on_as_an_undisturbed_one(drifts, cut, parts):
    spec = Governor(1, 2, cooldown=30.0, max_run=40.0)
    undisturbed, restored = spec.build(), spec.build()
    for number, (drift, part) in enumerate(zip(drifts, parts, strict=False)):
        if number == cut:
            state, restored = restored.state(), spec.build()
            restored.restore(state)
        one = verdict(number, drift=drift, part=(part, ""))
        assert undisturbed.judge(one, one.window) == restored.judge(one, one.window)
        assert undisturbed.state() == restored.state()


def restored(governing, spec):
    again = spec.build()
    again.restore(governing.state())
    return again


def test_an_open_incident_survives_a_restart():
    for part in (("", ""), ("long", "c=a")):
        governing = Governor(1, 1, retrain=False).build()
        judged(governing, [True], part=part)
        governing = restored(governing, Governor(1, 1, retrain=False))
        judged(governing, [False], first=1, part=part)
        assert governing.incident, "this window overlaps the one that was over before the restart"
        judged(restored(governing, Governor(1, 1, retrain=False)), [False], first=2, part=part)


def test_the_doubled_wait_survives_a_restart():
    spec = Governor(1, 1, cooldown=20.0, max_run=1e9)
    governing, starts = spec.build(), []
    for number in range(20):
        (decision,) = judged(governing, [True], first=number)
        if decision and decision.action == "retrain":
            starts.append(number * SLIDE)
            governing.finished(decision.run_id)
        governing = restored(governing, spec)
    assert starts == [0, 20, 60]


@settings(deadline=None)
@given(drifts=st.lists(st.booleans(), min_size=1, max_size=80))
def test_two_incidents_are_always_a_whole_window_apart(drifts):
    governing = Governor(1, 1, cooldown=0.0, max_run=1e9, retrain=False).build()
    last_breached, opened = None, []
    for number, drift in enumerate(drifts):
        decision = governing.judge(verdict(number, drift=drift), Span(0, 0, 0, 0.0, 0.0))
        if decision is not None and decision.action == "alert":
            quiet = 0 if last_breached is None else number - last_breached - 1
            assert last_breached is None or quiet * SLIDE >= SIZE
            opened.append(decision.incident)
        last_breached = number if drift else last_breached
    assert len(opened) == len({*opened})
    assert bool(opened) == any(drifts)


MODEL = "default/m"
SCHEMA = Schema((Feature("x", "numeric"),), "categorical", "y")


def reference(model, version):
    rng = np.random.default_rng(0)
    centre = 2.0 if version == "2" else 0.0
    return prepare(model, version, SCHEMA, {"x": rng.normal(centre, 1.0, 1000), "prediction": rng.choice(["0", "1"], 1000)})


def traffic(centre, count, first, seed=1):
    rng = np.random.default_rng((seed, first))
    return [
        event
        for number in range(first, first + count)
        for event in prediction(MODEL, f"p{number}", [[float(rng.normal(centre, 1.0))]], [int(rng.integers(2))])
    ]


def decisions(events, limits, **governor):
    spec = MonitorSpec(CountWindow(200, 20), limits, Governor(**{"confirm": 1, "of": 1, "cooldown": 60.0, **governor}))
    outcomes = Fleet({MODEL: spec}, reference, live=lambda model: "1", annotation="a").feed(records(events))
    return acting(outcome for outcome in outcomes if isinstance(outcome, Decision))


LIMITS = (BudgetLimit("budget", 100_000.0), EvidentlyLimit("wasserstein", "wasserstein", 0.4))


def test_a_change_that_lasts_and_is_retrained_away_triggers_once():
    before, after = traffic(0.0, 400, 0), traffic(2.0, 60, 400)
    (first,) = decisions([*before, *after], LIMITS)
    said = decisions([*before, *after, promotion(MODEL, "2", "1", first.run_id), *traffic(2.0, 1500, 1000)], LIMITS)
    assert [decision.id for decision in said] == [first.id]


def test_a_small_change_that_no_run_mends_is_one_incident_with_few_runs():
    limits = (EvidentlyLimit("wasserstein", "wasserstein", 0.5),)
    events = [*traffic(0.0, 400, 0), *traffic(0.5, 3000, 400)]
    seen = decisions(events, limits)
    told = [finished(MODEL, decision.run_id) for decision in seen]
    said = decisions([*events[:1600], *told[:1], *events[1600:]], limits)
    assert len({decision.incident for decision in said}) == 1
    assert 1 <= len(said) <= 3


def test_a_change_that_goes_and_comes_back_is_two_incidents():
    events = [*traffic(0.0, 300, 0), *traffic(2.0, 300, 300), *traffic(0.0, 700, 600), *traffic(2.0, 300, 1300)]
    said = decisions(events, LIMITS, retrain=False)
    assert [decision.action for decision in said] == ["alert", "alert"]
    assert len({decision.incident for decision in said}) == 2
