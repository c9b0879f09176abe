"""The governor: one confirmed breach starts one run; everything else holds, and says why."""

from hypothesis import given
from hypothesis import strategies as st

from streaming.core.governor import Governor
from streaming.core.verdict import Span, Verdict


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
