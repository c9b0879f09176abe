"""The ride: what a fleet says it says here too, wherever a batch is cut, and every tried setting says what a fleet with it would say."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import SnapshotError, VersionError
from inference.event import LABEL, Event, own_event
from inference.versions import Feature, Schema
from streaming.backtest.job import _unread
from streaming.backtest.question import KnownDrift
from streaming.backtest.result import Asked, Ridden, result
from streaming.backtest.ride import FleetRide, _order
from streaming.backtest.tally import hold_kind
from streaming.core.errors import ErrorLimit
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, EvidentlyLimit
from streaming.core.monitor import MonitorSpec
from streaming.core.reference import prepare
from streaming.core.schema import SchemaLimit
from streaming.core.segments import Segments
from streaming.core.time_window import TimeWindow
from streaming.core.verdict import Decision, Notice, Verdict
from streaming.core.view import View
from streaming.core.window import CountWindow
from streaming.detectors import ErrorAdwin
from streaming.replay import as_line
from streaming.snapshots import Snapshot, decode, encode
from streaming.testing import finished, prediction, promotion, records

MODEL = "default/iris"
SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "categorical", "y")
ANNOTATION = "driftloop.io/model-version"
KEPT = {}


def reference(model, version):
    if version not in ("1", "2"):
        raise VersionError(f"{model} has no version {version!r}")
    if version not in KEPT:
        rng = np.random.default_rng(0)
        sample = {
            "x": list(rng.normal(0.0 if version == "1" else 3.0, 1.0, 400)),
            "c": list(rng.choice(["a", "b"], 400)),
            "prediction": list(rng.choice(["0", "1"], 400)),
        }
        KEPT[version] = prepare("", version, SCHEMA, sample)
    one = KEPT[version]
    return type(one)(model, version, one.schema, one.columns, one.codes)


ADWIN = ErrorAdwin()
ERRORS = ErrorLimit("adwin", lambda: ADWIN.build(0, 1), ADWIN.settings, ADWIN.binary, 60, 10)


def spec(size=50, slide=10, limits=None, **more):
    governor = {"confirm": 2, "of": 3, "cooldown": 1000.0, "max_run": 500.0} | more.pop("governor", {})
    more = {"errors": ERRORS, "schema": SchemaLimit(0.05, 40)} | more
    return MonitorSpec(CountWindow(size, slide), limits or (EvidentlyLimit("ks", "ks", 1e-6),), Governor(**governor), **more)


BUDGET = (BudgetLimit("budget", 5000.0),)
TRIED = {
    "smaller": spec(30, 5),
    "budget": spec(40, 20, BUDGET, governor={"confirm": 1, "of": 1, "cooldown": 0.0}),
    "two windows and segments": spec(
        60, 20, name="short", more=(View("long", CountWindow(90, 30), (EvidentlyLimit("psi", "psi", 0.2),)),), segments=Segments("c", 2, 50)
    ),
    "time": MonitorSpec(
        TimeWindow(60.0, 20.0, 5.0, 5), (EvidentlyLimit("ks", "ks", 1e-6),), Governor(1, 1, 100, 50.0, retrain=False), errors=ERRORS
    ),
}


def label(id_, value, model=MODEL):
    body = {"prediction_id": id_, "labels": [value]}
    return own_event(LABEL, body, model=model, source="test", id_=f"label {id_}", now=0.0)


def traffic(count, centre, first, *, wrong=0.0, early=False, model=MODEL, labels=True):
    """Predictions, each followed by the label of one before it (or, `early`, behind its own label)."""
    rng = np.random.default_rng(first)
    events = []
    for number in range(first, first + count):
        rows = [[float(rng.normal(centre, 1.0)), str(rng.choice(["a", "b"]))] for _ in range(1 + (number % 7 == 0))]
        answers = [int(rng.integers(2)) for _ in rows]
        told = [str(1 - answer if rng.random() < wrong else answer) for answer in answers]
        ours = [label(f"p{number}", told[0], model)] if labels and len(rows) == 1 else []
        pair = [*prediction(model, f"p{number}", rows, answers)]
        events += [*ours, *pair] if early and number % 3 == 0 else [*pair, *ours]
    return events


def broken(count, first):
    """Predictions that do not fit the schema."""
    return [event for number in range(first, first + count) for event in prediction(MODEL, f"b{number}", [[1.0]], [0])]


def story():
    """Promotion of 1, quiet, drift, errors, a run's end, promotion of 2, quiet, drift back; another model's quiet traffic in between."""
    ours = [
        promotion(MODEL, "1"),
        *traffic(150, 0.0, 0),
        *traffic(90, 3.0, 1000, wrong=0.8, early=True),
        *broken(20, 5000),
        finished(MODEL, "nobody's run"),
        *traffic(25, 3.0, 6000, labels=False),
        promotion(MODEL, "2", "1"),
        *traffic(110, 3.0, 2000),
        *traffic(60, 0.0, 3000, wrong=0.5),
    ]
    others = [
        promotion("default/other", "1"),
        *traffic(100, 0.0, 7000, model="default/other", labels=False),
        *traffic(3, 0.0, 9000, model="a/unknown"),
    ]
    step = len(ours) // len(others) + 1
    mixed = []
    for place, event in enumerate(others):
        mixed += [*ours[place * step : (place + 1) * step], event]
    return mixed + ours[len(others) * step :]


RECORDS = records(story())
SPECS = {MODEL: spec(), "default/other": spec()}


def fleet(specs):
    return Fleet(specs, reference, live=lambda model: None, annotation=ANNOTATION)


def ride(tried=(), **more):
    told = [dict.fromkeys(SPECS, one) for one in tried]
    return FleetRide(SPECS, told, reference, live=lambda model: None, annotation=ANNOTATION, **more)


def pieces(cuts):
    ends = sorted({min(cut, len(RECORDS)) for cut in cuts} | {len(RECORDS)})
    return [RECORDS[start:stop] for start, stop in zip([0, *ends], ends, strict=False) if start < stop]


def said(fed):
    outcomes = {}
    for outcome in fed:
        of = outcome.verdict.model if isinstance(outcome, Decision) else outcome.model
        # As text: not a number is not itself.
        outcomes.setdefault(of, []).append(as_line(outcome))
    return outcomes


LIVE = said(fleet(SPECS).feed(RECORDS))


def test_the_story_holds_all_that_is_to_be_kept():
    told = [json.loads(line) for line in LIVE[MODEL]]
    kinds = Counter((one["outcome"], one.get("action") or one.get("kind") or one["of_window"]) for one in told)
    assert {("decision", "retrain"), ("decision", "hold"), ("decision", "alert"), ("notice", "promoted")} < kinds.keys()
    assert {("notice", "retraining_finished"), ("verdict", "errors"), ("verdict", "schema"), ("verdict", "")} < kinds.keys()
    assert any(one["drift"] for one in told if one["outcome"] == "verdict" and one["of_window"] == "errors")


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, len(RECORDS)), max_size=12))
def test_a_backtest_says_what_the_live_fleet_said_wherever_a_batch_is_cut(cuts):
    riding = ride(tried=[TRIED["budget"]])
    assert said(outcome for piece in pieces(cuts) for outcome in riding.feed(piece)) == LIVE


LIVE_TRIED = {name: fleet(dict.fromkeys(SPECS, one)).feed(RECORDS) for name, one in TRIED.items()}


def alarms(tally):
    return [
        (one["time"], one["decision"], one["reason"], one["incident"], one["run_id"], one["window"], one["segment"])
        for one in tally.memory.alarms
    ]


def acting(outcomes, model):
    return [
        (one.verdict.fell.time, one.action, one.reason, one.incident, one.run_id, one.verdict.of_window, one.verdict.segment)
        for one in outcomes
        if isinstance(one, Decision) and one.action != "hold" and one.verdict.model == model and one.verdict.of_window != "schema"
    ]


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, len(RECORDS)), max_size=12))
def test_a_tried_setting_decides_what_a_fleet_with_it_would_have_decided_wherever_a_batch_is_cut(cuts):
    riding = ride([*TRIED.values()])
    for piece in pieces(cuts):
        riding.feed(piece)
    for outcomes, tallies in zip(LIVE_TRIED.values(), riding.tallies[1:], strict=True):
        for model, tally in tallies.items():
            assert alarms(tally) == acting(outcomes, model)
            holds = Counter(
                hold_kind(two.reason)
                for two in outcomes
                if isinstance(two, Decision) and two.action == "hold" and two.verdict.model == model
            )
            assert tally.memory.holds == holds
            of_schema = [two for two in outcomes if isinstance(two, Verdict) and two.model == model and two.of_window == "schema"]
            verdicts = [two for two in outcomes if isinstance(two, Verdict) and two.model == model]
            assert tally.memory.verdicts == len(verdicts) - len(of_schema)
    assert sum(len(alarms(tallies[MODEL])) for tallies in riding.tallies[1:]) == 6


def told(riding):
    """The answer, without how long it took."""
    parts = [Ridden(dict(enumerate(riding.tallies[:1])), riding.records)]
    answer = result(Asked("here"), parts)
    return {name: value for name, value in answer.items() if name not in ("seconds", "events_per_second", "calibration_seconds")}


DRIFTS = [
    KnownDrift("first", MODEL, 160.0, 330.0, False),
    KnownDrift("second", MODEL, 640.0, 10_000.0, True),
    KnownDrift("never", MODEL, 1e9, 2e9, True),
]


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, len(RECORDS)), min_size=1, max_size=6), st.integers(0, 6))
def test_a_replay_that_is_stopped_and_goes_on_from_its_state_ends_as_an_undisturbed_one(cuts, at):
    undisturbed = ride([*TRIED.values()], drifts=DRIFTS)
    undisturbed.feed(RECORDS)
    riding = ride([*TRIED.values()], drifts=DRIFTS)
    for number, piece in enumerate(pieces(cuts)):
        if number == at:
            stored = encode(Snapshot(0, 0, riding.state()), "replay")
            riding = ride([*TRIED.values()], drifts=DRIFTS)
            riding.restore(decode(stored, "replay").body)
        riding.feed(piece)
    assert told(riding) == told(undisturbed)
    assert [{model: alarms(tally) for model, tally in tallies.items()} for tallies in riding.tallies] == [
        {model: alarms(tally) for model, tally in tallies.items()} for tallies in undisturbed.tallies
    ]


def test_labels_are_judged_behind_the_rows_of_their_record():
    of_smaller = [one for one in LIVE_TRIED["smaller"] if isinstance(one, Verdict)]
    rows, labels = (next(one for one in of_smaller if one.of_window == name) for name in ("", "errors"))
    same = replace(labels, window=rows.window)
    assert _order(rows) < _order(same)


def test_records_that_were_read_are_left_out_wherever_the_batches_end():
    assert [*_unread([RECORDS[:5], RECORDS[5:9], RECORDS[9:12]], 7)] == [RECORDS[7:9], RECORDS[9:12]]
    assert [*_unread([RECORDS[:5], RECORDS[5:9]], 0)] == [RECORDS[:5], RECORDS[5:9]]
    assert [*_unread([RECORDS[:5], RECORDS[5:9]], 9)] == []


def test_a_state_of_something_else_is_refused():
    with pytest.raises(SnapshotError, match="cannot be gone on from"):
        ride().restore({"fleet": {}, "rides": {}})
    stored = ride([TRIED["time"]], drifts=DRIFTS).state()
    with pytest.raises(SnapshotError):
        ride().restore(stored)


def judged_before(offset, model=MODEL):
    """How many rows of the model were judged when the record with this offset was read: counted one by one."""
    count, asked = 0, {}
    for record in RECORDS[: offset + 1]:
        event = record.event
        if event.model != model or not isinstance(event, Event):
            continue
        if event.type.endswith("request"):
            asked[event.id] = event
        elif event.type.endswith("response") and not event.id.startswith("b"):
            count += event.data.count(b",") - (b'"predictions"' not in event.data) + 1
    return count


def test_the_numbers_are_those_of_a_count_by_hand():
    riding = ride(drifts=DRIFTS)
    outcomes = riding.feed(RECORDS)
    answer = told(riding)
    decisions = [one for one in outcomes if isinstance(one, Decision)]
    acted = [one for one in decisions if one.action != "hold"]
    assert answer["events"] == len(RECORDS)
    assert [one["event"] for one in answer["alarms"]] == [judged_before(one.verdict.fell.offset) for one in acted]
    assert [one["time"] for one in answer["alarms"]] == [one.verdict.fell.time for one in acted]
    assert [one["run_id"] for one in answer["alarms"]] == [one.run_id for one in acted]
    actions = Counter(one.action for one in decisions)
    assert (answer["decisions"]["retrain"], answer["decisions"]["alert"]) == (actions["retrain"], actions["alert"])
    assert sum(answer["decisions"]["hold"].values()) == answer["hold"] == actions["hold"]
    assert "other" not in answer["decisions"]["hold"]
    assert len(answer["promotions"]) == answer["promoted"] == sum(isinstance(one, Notice) and one.kind == "promoted" for one in outcomes)
    verdicts = [one for one in outcomes if isinstance(one, Verdict)]
    assert (answer["verdicts"], answer["breached"]) == (len(verdicts), sum(one.drift for one in verdicts))
    assert {one["id"]: one["decisions"] for one in answer["incidents"]} == Counter(one.incident for one in decisions if one.incident)

    def within(one, drift):
        if one["model"] != MODEL:
            return False
        return drift.first <= (one["time"] if drift.timed else one["event"]) <= drift.last

    false = [one for one in answer["alarms"] if not any(within(one, drift) for drift in DRIFTS)]
    assert answer["false_alarms"]["count"] == len(false)
    assert [one["known_drift"] for one in answer["alarms"]].count(None) == len(false)
    for drift, of in zip(DRIFTS, answer["known_drifts"], strict=True):
        first = next((one for one in answer["alarms"] if within(one, drift)), None)
        assert (of["found"], of["alarm"] is None) == (first is not None, first is None)
        if first:
            assert answer["alarms"][of["alarm"]] == first
            assert of["delay_events"] == first["event"] - (160 if not drift.timed else judged_before(639) + 1)
    assert [one["happened"] for one in answer["known_drifts"]] == [True, True, False]
    assert answer["missed"] == sum(one["happened"] and not one["found"] for one in answer["known_drifts"])
    rows = sum(one["predictions"] for one in answer["models"])
    assert rows == judged_before(len(RECORDS)) + judged_before(len(RECORDS), "default/other")
    assert answer["false_alarms"]["per_100k_events"] == pytest.approx(len(false) / answer["false_alarms"]["events"] * 1e5)
    assert answer["false_alarms"]["per_30d"] == pytest.approx(len(false) / answer["false_alarms"]["days"] * 30, rel=1e-3)
