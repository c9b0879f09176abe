"""The governor: one confirmed breach starts one run; everything else holds, and says why."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.core.governor import Governor
from streaming.core.verdict import Place, Span, Verdict


def verdict(number, time, *, drift, predictions=1000):
    return Verdict(f"v{number}", "default/m", "1", number, predictions, Span(0, number, number, time, time), (), ("ks",) if drift else ())


def judge(governing, number, time, *, drift=True, predictions=1000):
    return governing.judge(verdict(number, time, drift=drift, predictions=predictions), Span(0, 0, number, 0.0, time))


def test_a_single_breach_is_held_until_it_is_confirmed():
    governing = Governor(confirm=2, of=3).build()
    first, quiet, second = judge(governing, 1, 1.0), judge(governing, 2, 2.0, drift=False), judge(governing, 3, 3.0)
    assert (first.action, first.run_id) == ("hold", "")
    assert "1 of the last 1" in first.reason
    assert quiet is None
    assert second.action == "retrain"
    assert second.run_id == governing.active_run != ""


def test_breaches_further_apart_than_the_window_of_confirmation_do_not_add_up():
    governing = Governor(confirm=2, of=3).build()
    actions = [judge(governing, n, float(n), drift=n % 3 == 1) for n in range(1, 20)]
    assert {decision.action for decision in actions if decision} == {"hold"}


def test_no_second_run_while_one_is_active_and_none_in_the_cool_down():
    governing = Governor(confirm=1, of=1, cooldown=100.0, max_run=1000.0).build()
    start = judge(governing, 1, 0.0)
    active = judge(governing, 2, 10.0)
    assert (start.action, active.action) == ("retrain", "hold")
    assert start.run_id in active.reason
    assert judge(governing, 3, 20.0) is None, "the same reason is not said twice"
    governing.finished("another run")
    assert governing.active_run == start.run_id
    governing.finished(start.run_id)
    cooling = judge(governing, 4, 30.0)
    assert cooling.action == "hold"
    assert "70 s of the cool-down" in cooling.reason
    again = judge(governing, 5, 100.0)
    assert again.action == "retrain"
    assert again.run_id != start.run_id
    assert again.incident == start.incident, "the same stretch of drift is one incident"


def test_a_run_that_is_never_heard_of_again_blocks_only_for_its_age_limit():
    governing = Governor(confirm=1, of=1, cooldown=0.0, max_run=50.0).build()
    assert judge(governing, 1, 0.0).action == "retrain"
    assert judge(governing, 2, 50.0).action == "hold"
    assert judge(governing, 3, 50.1).action == "retrain"


def test_too_few_predictions_hold():
    governing = Governor(confirm=1, of=1, min_samples=500).build()
    held = judge(governing, 1, 0.0, predictions=499)
    assert held.action == "hold"
    assert "at least 500" in held.reason
    assert judge(governing, 2, 1.0, predictions=500).action == "retrain"


def test_a_promotion_ends_the_story_but_not_the_cool_down():
    governing = Governor(confirm=1, of=2, cooldown=100.0).build()
    start = judge(governing, 1, 0.0)
    governing.promoted()
    assert (governing.active_run, governing.incident) == ("", "")
    assert judge(governing, 2, 99.0).action == "hold"
    again = judge(governing, 3, 100.0)
    assert again.action == "retrain"
    assert again.incident != start.incident


def test_quiet_again_closes_the_incident():
    governing = Governor(confirm=1, of=2, cooldown=0.0).build()
    start = judge(governing, 1, 0.0)
    governing.finished(start.run_id)
    judge(governing, 2, 1.0, drift=False)
    assert governing.incident == start.incident
    judge(governing, 3, 2.0, drift=False)
    assert governing.incident == ""
    assert judge(governing, 4, 3.0).incident != start.incident


def test_where_retraining_is_off_each_incident_alerts_once():
    governing = Governor(confirm=1, of=2, cooldown=0.0, retrain=False).build()
    first = judge(governing, 1, 0.0)
    assert (first.action, first.run_id, governing.active_run) == ("alert", "", "")
    assert judge(governing, 2, 1.0).action == "hold"
    assert judge(governing, 3, 2.0) is None
    judge(governing, 4, 3.0, drift=False)
    judge(governing, 5, 4.0, drift=False)
    assert judge(governing, 6, 5.0).action == "alert"


@given(
    drifts=st.lists(st.booleans(), min_size=1, max_size=60),
    confirm=st.integers(1, 3),
    cooldown=st.floats(0, 30),
    finish_after=st.integers(1, 9),
)
def test_runs_never_overlap_and_keep_their_distance(drifts, confirm, cooldown, finish_after):
    governing = Governor(confirm=confirm, of=3, cooldown=cooldown, max_run=1e9).build()
    started, active = [], None
    for time, drift in enumerate(drifts):
        if active and time - started[-1] >= finish_after:
            governing.finished(active)
            active = None
        decision = judge(governing, time, float(time), drift=drift)
        if decision and decision.action == "retrain":
            assert active is None
            assert drift
            assert sum(drifts[max(0, time - 2) : time + 1]) >= confirm
            assert not started or time - started[-1] >= cooldown
            started.append(time)
            active = decision.run_id


# Several windows and segments


def of(window, segment, number, time, *, drift=True, predictions=1000):
    told = verdict(number, time, drift=drift, predictions=predictions)
    return Verdict(*[getattr(told, name) for name in Verdict.__slots__[:8]], window, segment)


def tell(governing, *verdicts):
    return [governing.judge(one, one.window) for one in verdicts]


def test_each_window_and_segment_is_confirmed_by_itself():
    governing = Governor(confirm=2, of=3).build()
    held = tell(governing, of("short", "", 1, 1.0), of("long", "", 2, 2.0), of("short", "c=de", 3, 3.0), of("", "", 4, 4.0))
    assert [decision.action for decision in held] == ["hold"] * 4
    assert held[2].reason == "window short, c=de: over the limit in 1 of the last 1 windows; 2 of 3 confirm it"
    (started,) = tell(governing, of("short", "c=de", 5, 5.0))
    assert started.action == "retrain"
    assert started.reason == "window short, c=de: over the limit in 2 of the last 2 windows"
    assert governing.status() == {"incident": started.incident, "active_run": started.run_id, "breached": 2, "of": 2}


def test_a_quiet_window_does_not_make_another_one_say_again_what_it_said():
    governing = Governor(confirm=1, of=1, cooldown=0.0).build()
    story = [
        of("short", "", number, float(number)) if number % 2 else of("long", "", number, float(number), drift=False)
        for number in range(1, 9)
    ]
    assert [decision.action if decision else "" for decision in tell(governing, *story)] == ["retrain", "", "hold", "", "", "", "", ""]


def test_an_incident_is_over_when_no_window_has_a_recent_breach():
    governing = Governor(confirm=1, of=2, cooldown=0.0).build()
    (start,) = tell(governing, of("short", "", 1, 1.0))
    tell(governing, of("long", "", 2, 2.0), of("short", "", 3, 3.0, drift=False), of("short", "", 4, 4.0, drift=False))
    assert governing.incident == start.incident, "the long window still sees it"
    tell(governing, of("long", "", 5, 5.0, drift=False))
    assert governing.incident == start.incident
    tell(governing, of("long", "", 6, 6.0, drift=False))
    assert governing.incident == ""


def test_a_segment_that_is_not_heard_of_for_a_week_keeps_no_incident_open():
    week = 7 * 86_400.0
    governing = Governor(confirm=1, of=1, cooldown=0.0, retrain=False).build()
    tell(governing, of("", "c=lu", 1, 0.0), of("", "", 2, week, drift=False))
    assert governing.incident != ""
    tell(governing, of("", "", 3, week + 1.0, drift=False))
    assert governing.incident == ""


def test_windows_that_are_no_more_are_forgotten():
    governing = Governor(confirm=1, of=1, cooldown=0.0).build()
    tell(governing, of("gone", "", 1, 1.0), of("kept", "c=de", 2, 2.0))
    governing.keep({("kept", "c=de"), ("new", "")})
    assert [(one["window"], one["segment"]) for one in governing.state()["others"]] == [("kept", "c=de")]


def test_too_few_predictions_of_a_segment_hold_and_name_it():
    governing = Governor(confirm=1, of=1, min_samples=500).build()
    (held,) = tell(governing, of("", "c=lu", 1, 1.0, predictions=499))
    assert "499 predictions of version 1 in c=lu so far" in held.reason


def test_the_clock_is_where_verdicts_fell_due_and_not_how_old_their_windows_are():
    governing = Governor(confirm=1, of=1, cooldown=100.0).build()
    tell(governing, of("", "", 1, 1000.0))
    governing.finished(governing.active_run)
    old = verdict(2, 900.0, drift=True)
    due = Verdict(*[getattr(old, name) for name in Verdict.__slots__[:8]], due=Place(9, 1100.0))
    assert tell(governing, due)[0].action == "retrain"


PARTS = st.tuples(st.sampled_from(["", "short", "long"]), st.sampled_from(["", "c=de"]))


@given(story=st.lists(st.tuples(PARTS, st.booleans()), max_size=40), of_=st.integers(1, 3), retrain=st.booleans(), data=st.data())
def test_a_restored_governor_says_what_an_undisturbed_one_says(story, of_, retrain, data):
    spec = Governor(confirm=1, of=of_, cooldown=3.0, max_run=9.0, retrain=retrain)
    straight, restarted = spec.build(), spec.build()
    for number, (part, drift) in enumerate(story):
        if data.draw(st.booleans()):
            anew = spec.build()
            anew.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(restarted.state())))
            restarted = anew
        one = of(*part, number, float(number), drift=drift)
        assert restarted.judge(one, one.window) == straight.judge(one, one.window)
        assert restarted.state() == straight.state()
        # An incident is open only as long as some window has a recent breach.
        states = straight.state()
        breaches = any(states["recent"]) or any(any(other["recent"]) for other in states["others"])
        assert breaches or not straight.incident


def test_a_memory_from_before_there_were_several_windows_is_gone_on_with():
    governing = Governor(confirm=2, of=3).build()
    governing.restore({"recent": [True, False], "incident": "i", "run": None, "last_start": None, "said": "few"})
    assert tell(governing, of("", "", 3, 3.0))[0].action == "retrain"
    with pytest.raises(ValueError):
        Governor().build().restore({**governing.state(), "others": [{"window": "w"}]})
