"""Series that stay small and lose no breach, histograms, accuracy along the way, the bar, and what is told to people."""

import io
from math import nan

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.backtest.accuracy import Accuracy
from streaming.backtest.progress import Bar, bar
from streaming.backtest.run import jobs_of
from streaming.backtest.tally import hold_kind
from streaming.backtest.text import as_text
from streaming.backtest.timeline import FEATURES, POINTS, Part, evidence_of, height
from streaming.core.governor import Governor
from streaming.core.reference import prepare
from streaming.core.verdict import Decision, Explanation, Finding, Moved, Place, Span, Verdict


def verdict(number, *findings, time=None):
    breached = ("limit",) if any(finding.over for finding in findings) else ()
    span = Span(0, 0, number, 0.0, float(number) if time is None else time)
    return Verdict(f"v{number}", "default/m", "1", number, number, span, tuple(findings), breached)


def finding(score, over=False, feature="x", test="psi", limit=1.0):
    return Finding("limit", feature, test, score, limit, over)


def test_a_p_value_is_the_higher_the_smaller_it_is():
    assert height(finding(0.5)) == 0.5
    assert height(finding(0.001, test="ks", limit=0.01)) == pytest.approx(10.0)
    assert height(finding(nan)) == 0.0


@settings(max_examples=10, deadline=None)
@example(5000, [2, 778, 4999], 0)
@given(st.integers(1, 9000), st.lists(st.integers(1, 9000), max_size=5), st.integers(0, 2**31))
def test_a_series_is_bounded_and_keeps_every_breach_and_the_highest_of_each_bin(count, breaches, seed):
    scores = np.random.default_rng(seed).random(count) * 0.9
    scores[[number - 1 for number in breaches if number <= count]] = 2.0
    part = Part()
    for number, score in enumerate(scores.tolist(), 1):
        part.add(verdict(number, finding(score, score > 1)), number)
    told = part.as_dict()
    (series,) = told["features"]
    assert len(told["time"]) == len(told["event"]) == len(told["over"]) == len(series["score"]) <= POINTS
    width = part.width
    assert series["score"] == [scores[start : start + width].max() for start in range(0, count, width)]
    of_bin = {(number - 1) // width for number in breaches if number <= count}
    assert {place for place, over in enumerate(told["over"]) if over} == of_bin
    assert all(scores[event - 1] > 1 for event, over in zip(told["event"], told["over"], strict=True) if over)
    assert told["event"] == sorted(told["event"])
    assert Part.of(part.state()).as_dict() == told


def test_a_series_that_comes_late_has_gaps_before_and_the_nearest_features_are_shown():
    part = Part()
    part.add(verdict(1, finding(0.1)), 1)
    part.add(verdict(2, *[finding(number / 100, feature=f"f{number}") for number in range(80)]), 2)
    told = part.as_dict()
    shown = {one["feature"]: one["score"] for one in told["features"]}
    assert len(shown) == FEATURES
    assert "f79" in shown
    assert "f0" not in shown
    assert shown["f79"] == [None, 0.79]


SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "numeric", "")


def test_evidence_is_in_shares_of_both_sides():
    rng = np.random.default_rng(1)
    sample = {"x": [*rng.normal(size=500)], "c": ["a"] * 300 + ["b"] * 200}
    reference = prepare("default/m", "1", SCHEMA, sample)
    window = {"x": (1e9, *rng.normal(3.0, size=98), None), "c": ("b",) * 50 + ("new",) * 40 + (None,) * 10}
    explained = tuple(
        Explanation("limit", name, "psi", "", 2.0, 1.0, "up", (Moved("mean", 0.0, 1.0),), Place(1, 1.0), 5, False, share)
        for name, share in (("x, c", 0.7), ("c", 0.3))
    )
    one = verdict(9, finding(2.0, True))
    x, c = evidence_of(Decision("d", "alert", "", "", "", one, one.window, window, explained), reference)
    assert (x["feature"], c["feature"]) == ("x", "c")
    edges, share = np.array(x["window"]["edges"]), np.array(x["window"]["share"])
    assert x["reference"]["edges"] == x["window"]["edges"]
    assert share.sum() == pytest.approx(1.0)
    assert share[-1] >= 1 / 99
    assert edges[-1] < 10
    inside = np.histogram(np.clip(sample["x"], edges[0], edges[-1]), edges)[0] / 500
    assert x["reference"]["share"] == pytest.approx(inside.tolist())
    shares = {side: dict(zip(c[side]["names"], c[side]["share"], strict=True)) for side in ("reference", "window")}
    assert shares == {
        "reference": {"a": 0.6, "b": 0.4, "new": 0.0},
        "window": {"a": 0.0, "b": pytest.approx(5 / 9), "new": pytest.approx(4 / 9)},
    }


def told_of(accuracy, labelled, error, time):
    accuracy.told({"error": error, "of": min(labelled, 500), "labelled": labelled}, time, 500, categorical=True)


def test_a_fall_is_more_than_chance_and_an_alarm_before_it_counts():
    accuracy = Accuracy()
    for number, error in enumerate([0.0, 0.1, 0.12, 0.16], 1):
        told_of(accuracy, 250 * number, error, float(number))
    assert accuracy.fall is None
    accuracy.alarm(4.5)
    told_of(accuracy, 1250, 0.3, 5.0)
    assert (accuracy.fall["time"], accuracy.fall["alarm_before"], accuracy.fall["alarm_time"]) == (5.0, True, 4.5)
    assert (accuracy.fall["first"], accuracy.fall["accuracy"]) == (0.9, 0.7)
    assert [point["labels"] for point in accuracy.points] == [250, 500, 750, 1000, 1250]
    late = Accuracy()
    told_of(late, 500, 0.1, 1.0)
    late.promoted()
    told_of(late, 1000, 0.5, 2.0)
    assert late.fall is None, "another version falls from what it was itself"
    told_of(late, 1500, 0.8, 3.0)
    late.alarm(4.0)
    assert late.fall["alarm_before"] is False


def test_points_of_accuracy_are_bounded():
    accuracy = Accuracy()
    for number in range(1, 5000):
        told_of(accuracy, 50 * number, 0.1, float(number))
    times = [point["time"] for point in accuracy.points]
    assert 250 <= len(times) <= 500
    assert len({*np.diff(times)}) == 1


def test_every_reason_of_the_governor_to_hold_has_its_kind():
    over = finding(2.0, True)

    def reason(spec, *verdicts):
        governing = spec.build()
        return hold_kind([governing.judge(one, one.window) for one in verdicts][-1].reason)

    assert reason(Governor(2, 3), verdict(1, over)) == "unconfirmed"
    assert reason(Governor(1, 1, 50), verdict(1, over)) == "few"
    assert reason(Governor(1, 1, retrain=False), verdict(1, over), verdict(2, over)) == "alerted"
    assert reason(Governor(1, 1), verdict(1, over), verdict(2, over)) == "active"
    assert reason(Governor(1, 1, 0, 600.0, 5.0), verdict(1, over), verdict(10, over)) == "cooldown"


def test_work_is_shared_by_models_or_by_tried_settings():
    assert [(job.models, job.tried) for job in jobs_of(["a", "b", "c"], 2, 2)] == [(("a", "c"), (1, 2)), (("b",), (1, 2))]
    assert [(job.models, job.tried) for job in jobs_of(["a"], 5, 2)] == [(("a",), (1, 3, 5)), (("a",), (2, 4))]
    assert [(job.models, job.tried) for job in jobs_of(["a"], 0, 8)] == [(("a",), ())]
    assert [(job.models, job.tried) for job in jobs_of(["a"], 1, 8)] == [(("a",), (1,))]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_shown_on_a_terminal_only():
    pytest.importorskip("rich")
    with bar(100, io.StringIO()) as nothing:
        assert nothing is None
    terminal = Terminal()
    with bar(100, terminal) as shown:
        assert isinstance(shown, Bar)
        shown.at(50)
    assert "50/100" in terminal.getvalue()
    assert "events/s" in terminal.getvalue()


EMPTY = {
    "events": 10,
    "alarms": [],
    "notes": [],
    "injected": [],
    "known_drifts": [],
    "accuracy": {},
    "falls": {},
    "tried": [],
    "proposal": None,
    "unreadable": {"count": 30, "places": [{"place": f"f.jsonl:{number}", "reason": "no JSON"} for number in range(20)]},
    "false_alarms": {"count": 0, "per_30d": None, "per_100k_events": 0.0, "days": 0.0, "events": 10},
    "decisions": {"retrain": 1, "alert": 0, "hold": {"cooldown": 3}},
    "events_per_second": 5,
    "calibration_seconds": 0.5,
}


def test_people_are_told_what_could_not_be_read_and_what_was_held_back():
    text = as_text(EMPTY)
    assert "30 could not be read" in text
    assert "f.jsonl:9: no JSON" in text
    assert "f.jsonl:10" not in text
    assert "and 20 more" in text
    assert "1 started, 3 held back (cooldown 3)" in text
