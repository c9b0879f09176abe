"""Concept drift through the fleet: late labels make verdicts of their own, the same wherever a batch is cut or a watcher restarts."""

from collections import defaultdict
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as altered

from inference.errors import SnapshotError, VersionError
from inference.event import LABEL, own_event
from inference.log.embedded import EmbeddedLog
from inference.versions import Feature, Schema
from streaming.core.errors import ErrorLimit
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import EvidentlyLimit
from streaming.core.monitor import MonitorSpec
from streaming.core.reference import prepare
from streaming.core.schema import SchemaLimit
from streaming.core.verdict import Decision, Verdict, as_object
from streaming.core.window import CountWindow
from streaming.detectors import Ddm, ErrorAdwin
from streaming.replay import Replay
from streaming.snapshots import Snapshot, decode, encode
from streaming.testing import finished, prediction, promotion, records

MODEL = "ns/a"
SCHEMA = Schema((Feature("x", "numeric"),), "categorical", "species")


def reference(model, version):
    if version == "9":
        raise VersionError("no version 9")
    rng = np.random.default_rng(0)
    return prepare(model, version, SCHEMA, {"x": list(rng.normal(0, 1, 200)), "prediction": list(rng.choice(["0", "1"], 200))})


def errors(detector=None, **bounds):
    detector = detector or ErrorAdwin(delta=0.02, clock=4)
    bounds = {"size": 60, "slide": 15, "max_waiting": 500, **bounds}
    return ErrorLimit(detector.kind, lambda: detector.build(0, 1), detector.settings, detector.binary, **bounds)


def spec(limit=None, **governor):
    chosen = {"confirm": 1, "of": 2, "cooldown": 100.0, "max_run": 1e6, **governor}
    far = (EvidentlyLimit("far", "wasserstein", 9.0, columns=("x",)),)
    return MonitorSpec(CountWindow(20, 10), far, Governor(**chosen), errors=limit or errors(), schema=SchemaLimit(0.2, 10))


def fleet(model_spec=None):
    return Fleet({MODEL: model_spec or spec()}, reference, live=lambda model: None, annotation="driftloop.io/model-version")


def label(id_, *labels, number=0, source=""):
    body = {"prediction_id": id_, "labels": [*labels], **({"prediction_source": source} if source else {})}
    return own_event(LABEL, body, model=MODEL, source="truth", id_=f"label {id_} {number}", now=0.0)


def traffic(count, wrong, *, seed=1, name="p", lag=30, version=""):
    """Predictions whose labels come `lag` predictions later; a share of `wrong` of them are."""
    rng = np.random.default_rng(seed)
    events, due = [], []
    for number in range(count):
        said = str(rng.integers(2))
        events += prediction(MODEL, f"{name}{number}", [[float(rng.normal())]], [said], version=version)
        due.append(label(f"{name}{number}", str(1 - int(said)) if rng.random() < wrong else said))
        if len(due) > lag:
            events.append(due.pop(0))
    return [*events, *due]


def story():
    quiet, worse, better = traffic(240, 0.05), traffic(120, 0.6, seed=2, name="q"), traffic(80, 0.1, seed=3, name="r")
    return records([promotion(MODEL, "1"), *quiet, *worse, promotion(MODEL, "2", "1"), *better])


def of_errors(outcomes):
    return [one for one in outcomes if isinstance(one, Verdict) and one.of_window == "errors"]


def labels_of(running):
    return running.status()["models"][MODEL]["labels"]


def told(outcomes):
    return [repr(as_object(one)) + (repr(one.evidence) if isinstance(one, Decision) else "") for one in outcomes]


def restored(running, model_spec=None):
    anew = fleet(model_spec)
    state = decode(encode(Snapshot(0, 0, {"fleet": running.state(0)}), "log"), "log").body["fleet"]
    return anew, anew.restore(0, state)


def test_a_rise_of_the_error_starts_one_run_and_tells_why_and_since_when():
    log = story()
    running = fleet()
    outcomes = running.feed(log)
    decisions = [one for one in outcomes if isinstance(one, Decision)]
    assert [(one.action, one.verdict.of_window) for one in decisions] == [("retrain", "errors"), ("hold", "errors")]
    verdict = decisions[0].verdict
    (finding,) = verdict.findings
    assert (verdict.breached, finding.limit, finding.feature, finding.test) == (("errors",), "errors", "species", "adwin")
    assert finding.signal.startswith("error up 0.0")
    assert finding.score > 0.3 > 0.1 > finding.threshold
    began = decisions[0].drift_began
    changed = next(record.offset for record in log if record.event.id == "q0")
    assert abs(began.first_offset - changed) < 100
    label_record = log[verdict.window.last_offset]
    assert label_record.event.type == LABEL
    assert (began.last_offset, began.last_time) == (label_record.offset, label_record.timestamp)
    assert decisions[0].explanation[0].moved[0].what == "error"
    assert len(decisions[0].evidence["x"]) == 20
    quiet = [one for one in of_errors(outcomes) if one.version == "2"]
    assert quiet
    assert not any(one.drift for one in quiet), "a promotion starts it anew"
    assert [one.number for one in quiet] == [*range(1, len(quiet) + 1)]


def test_a_fall_of_the_error_is_no_drift():
    outcomes = fleet().feed(records([promotion(MODEL, "1"), *traffic(400, 0.6), *traffic(400, 0.02, seed=2, name="q")]))
    assert len(of_errors(outcomes)) >= 40
    assert not any(one.drift for one in of_errors(outcomes))


def test_without_labels_there_is_no_verdict_on_errors():
    events = [event for event in traffic(100, 0.5) if event.type != LABEL]
    assert of_errors(fleet().feed(records([promotion(MODEL, "1"), *events]))) == []


def test_quiet_windows_of_features_neither_dilute_a_rise_nor_close_its_incident():
    running = fleet(spec(confirm=2, of=2))
    actions, open_ = [], []
    for record in story()[:1050]:
        for one in running.feed([record]):
            if isinstance(one, Decision):
                actions.append((one.action, one.verdict.of_window))
            open_.append((running.status()["models"][MODEL]["governor"]["incident"], one.of_window if isinstance(one, Verdict) else ""))
    assert actions[:2] == [("hold", "errors"), ("retrain", "errors")], "the second verdict on errors confirms the first"
    after = [(incident, window) for incident, window in open_ if incident]
    assert {window for _, window in after} >= {"", "errors"}, "windows of features were judged meanwhile"
    first = next(place for place, one in enumerate(open_) if one[0])
    assert all(incident for incident, _ in open_[first:])
    assert len({incident for incident, _ in after}) == 1


def test_the_incident_closes_when_the_error_is_as_before():
    events = [promotion(MODEL, "1"), *traffic(400, 0.05), *traffic(80, 0.8, seed=2, name="q"), *traffic(400, 0.03, seed=3, name="r")]
    running = fleet()
    outcomes = running.feed(records(events))
    over = [one.drift for one in of_errors(outcomes)]
    assert any(over)
    assert over[-3:] == [False, False, False]
    assert running.status()["models"][MODEL]["governor"]["incident"] == ""
    assert sum(isinstance(one, Decision) and one.action == "retrain" for one in outcomes) == 1


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, 1300), max_size=12))
def test_where_batches_are_cut_changes_nothing(cuts):
    log = mixed_up(story(), 7)
    whole, cutting = fleet(), fleet()
    expected = whole.feed(log)
    assert any(one.drift for one in of_errors(expected))
    assert any(isinstance(one, Decision) and one.action == "alert" for one in expected), "the schema changed"
    places = [0, *sorted({min(cut, len(log)) for cut in cuts}), len(log)]
    outcomes = [one for start, stop in pairwise(places) for one in cutting.feed(log[start:stop])]
    assert told(outcomes) == told(expected)
    assert msgspec.msgpack.encode(cutting.state(0)) == msgspec.msgpack.encode(whole.state(0))
    assert cutting.status() == whole.status()


def mixed_up(log, seed, share=0.05):
    """Labels before their predictions, again, corrected, of nobody, of several rows, and a canary's; and payloads of another width."""
    rng = np.random.default_rng(seed)
    events, number = [record.event for record in log], 0
    for _ in range(int(share * len(events))):
        place, number = int(rng.integers(1, len(events) - 40)), number + 1
        kind = rng.integers(6)
        if kind == 0:
            events.insert(place, events.pop(place + int(rng.integers(1, 40))))
        elif kind == 1:
            events.insert(place, label(f"p{rng.integers(400)}", str(rng.integers(2)), number=number))
        elif kind == 2:
            events.insert(place, label(f"nobody{number}", "1"))
        elif kind == 3:
            rows = [[0.1 * row] for row in range(3)]
            events[place:place] = [*prediction(MODEL, f"b{number}", rows, ["0", "1", "1"]), label(f"b{number}", "0", None, "0")]
        elif kind == 4:
            events[place:place] = [one for row in range(3) for one in prediction(MODEL, f"u{number}-{row}", [[0.5, 1.0]], ["1"])]
        else:
            events[place:place] = [*prediction(MODEL, f"c{number}", [[0.5]], ["1"], version="3"), label(f"c{number}", "0")]
    return records(events, first=5)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_restoring_anywhere_changes_neither_the_outcomes_nor_the_final_state(data):
    log = mixed_up(story(), data.draw(st.integers(0, 5)))
    undisturbed, running, outcomes = fleet(), fleet(), []
    expected = undisturbed.feed(log)
    places = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=6)))
    for start, stop in pairwise([0, *places, len(log)]):
        before = running.state(0)
        running, notices = restored(running)
        assert notices == []
        assert msgspec.msgpack.encode(running.state(0)) == msgspec.msgpack.encode(before)
        outcomes += running.feed(log[start:stop])
    assert told(outcomes) == told(expected)
    assert msgspec.msgpack.encode(running.state(0)) == msgspec.msgpack.encode(undisturbed.state(0))


def test_a_replay_of_the_log_says_the_same(tmp_path):
    log = EmbeddedLog(tmp_path / "log.db")
    try:
        log.append([record.event for record in story()])
        stretch = log.read({log.partition_of(MODEL): 0}, 10_000)
        assert len(stretch) == len(story())
        live = fleet()
        said = [one for record in stretch for one in live.feed([record])]
        assert told([*Replay(log, fleet())]) == told(said)
        assert any(one.drift for one in of_errors(said))
    finally:
        log.close()


def test_every_label_is_accounted_for():
    running = fleet()
    running.feed(mixed_up(story(), 3, share=0.2))
    counts = labels_of(running)["counts"]
    assert {"labelled", "unmatched", "duplicates", "corrected", "other_version", "rows_without_label"} <= counts.keys()
    by_label = sum(count for name, count in counts.items() if name != "forgotten")
    assert by_label == running.status()["models"][MODEL]["counts"]["labels"]


def test_a_label_of_a_prediction_of_the_version_before_does_not_count_against_the_new_one():
    late = [label(f"p{number}", "2") for number in range(300)]
    made = [event for event in traffic(300, 0.0) if event.type != LABEL]
    running = fleet()
    outcomes = running.feed(records([promotion(MODEL, "1"), *made, promotion(MODEL, "2", "1"), *late]))
    assert of_errors(outcomes) == []
    assert labels_of(running)["counts"] == {"other_version": 300}
    assert labels_of(running)["labelled"] == 0


def test_lag_share_and_rates_are_in_the_status():
    running = fleet()
    made = [event for number in range(40) for event in prediction(MODEL, f"p{number}", [[0.0], [1.0]], ["1", "1"])]
    labels = [label(f"p{number}", "1", "0" if number % 5 == 0 else "1") for number in range(10)]
    running.feed(records([promotion(MODEL, "1"), *made, *labels]))
    # Prediction n was whole with record 2 + 2 n, one a second; its label is record 81 + n.
    lags = [81 + n - (2 + 2 * n) for n in range(10)]
    assert labels_of(running) == {
        "labelled": 20,
        "error": 0.1,
        "of": 20,
        "error_since_takeover": 0.1,
        "lag_median": float(np.median(lags)),
        "lag_p95": float(np.quantile(lags, 0.95)),
        "detector": "adwin",
        "over": False,
        "unknown": "",
        "share_labelled": 0.25,
        "waiting": 80,
        "counts": {"labelled": 20},
    }


def test_a_label_that_came_before_its_prediction_is_judged_with_it():
    early = []
    for number in range(300):
        said = "1" if number < 200 or number % 2 else "0"
        early += [label(f"p{number}", "1"), *prediction(MODEL, f"p{number}", [[0.0]], [said])]
    log = records([promotion(MODEL, "1"), *early])
    running = fleet()
    verdicts = of_errors(running.feed(log))
    assert any(one.drift for one in verdicts)
    assert {log[one.window.last_offset].event.type for one in verdicts} == {log[3].event.type}, "a response"
    assert labels_of(running)["counts"]["labelled"] == 300
    assert labels_of(running)["lag_p95"] == 0.0


def test_a_version_without_a_reference_has_its_labels_counted_only():
    running = fleet()
    assert of_errors(running.feed(records([promotion(MODEL, "9"), *traffic(50, 0.5)]))) == []
    assert running.status()["models"][MODEL]["counts"]["labels"] == 50
    assert labels_of(running)["waiting"] == 0
    assert restored(running)[0].state(0) == running.state(0)


def test_a_snapshot_from_before_there_were_labelled_errors_starts_them_anew():
    running = fleet()
    log = story()
    running.feed(log[:600])
    state = running.state(0)
    del state["models"][MODEL]["concept"], state["models"][MODEL]["schema_changes"]
    anew = fleet()
    assert anew.restore(0, state) == []
    assert labels_of(anew)["labelled"] == 0
    assert of_errors(anew.feed(log[600:]))


def test_other_settings_start_the_labelled_errors_anew_and_say_so():
    running = fleet()
    running.feed(story()[:600])
    anew, (notice,) = restored(running, spec(errors(Ddm())))
    assert (notice.kind, labels_of(anew)["labelled"]) == ("restarted", 0)
    assert "labelled errors start anew" in notice.data["reason"]
    bounded, notices = restored(running, spec(errors(max_waiting=10)))
    assert notices == []
    bounded.feed(story()[600:620])
    assert labels_of(bounded)["waiting"] == 10


def test_a_detector_of_another_river_starts_anew_and_the_rest_goes_on():
    running = fleet()
    running.feed(story()[:600])
    state = running.state(0)
    judge = state["models"][MODEL]["concept"]["judge"]
    judge["detector"] = b"0.1.0\n" + judge["detector"]
    anew = fleet()
    (notice,) = anew.restore(0, state)
    assert "the detector of labelled errors starts anew: " in notice.data["reason"]
    assert labels_of(anew) == labels_of(running)


def places_of(value, path=()):
    if isinstance(value, dict | list) and value:
        for key in value if isinstance(value, dict) else range(min(2, len(value))):
            yield from places_of(value[key], (*path, key))
    yield path


def with_leaf(value, path, leaf):
    if not path:
        return leaf
    members = dict(value) if isinstance(value, dict) else list(value)
    members[path[0]] = with_leaf(members[path[0]], path[1:], leaf)
    return members


LEAVES = [None, -1, 2**63, 1.5, float("nan"), "x", b"", b"x" * 16, [], [1], {}]
NEXT = records([*traffic(60, 0.5, name="n"), *[label(f"p{number}", "0", number=9) for number in range(60, 400, 7)]], first=5000)


@pytest.mark.parametrize("part", ["concept", "schema_changes"])
def test_any_other_state_is_a_snapshot_error_or_goes_on_and_never_anything_else(part):
    running = fleet()
    running.feed(mixed_up(story()[:800], 1))
    state, outcomes = running.state(0), defaultdict(int)
    for path in places_of(state["models"][MODEL][part] or {}):
        for leaf in LEAVES:
            anew = fleet()
            try:
                anew.restore(0, with_leaf(state, ("models", MODEL, part, *path), leaf))
            except SnapshotError:
                outcomes["refused"] += 1
            else:
                outcomes["went on"] += 1
                anew.feed(NEXT[:: 1 if len(path) < 3 else 9])
                anew.state(0)
                anew.status()
    assert outcomes["refused"]


def test_a_run_that_ended_without_a_promotion_may_start_again_while_the_error_is_high():
    high = [promotion(MODEL, "1"), *traffic(400, 0.05), *traffic(500, 0.7, seed=2, name="q")]
    first = next(one for one in fleet().feed(records(high)) if isinstance(one, Decision))
    place = first.verdict.window.last_offset + 1
    log = records([*high[:place], finished(MODEL, first.run_id), *high[place:]])
    starts = [one for one in fleet(spec(cooldown=300.0)).feed(log) if isinstance(one, Decision) and one.action == "retrain"]
    assert len(starts) == 2, "after the cool-down, as for any limit that stays over"
    assert len({one.incident for one in starts}) == 1


def test_records_of_another_partition_are_another_stream():
    log = [altered(record, partition=3) for record in story()]
    assert {one.window.partition for one in of_errors(fleet().feed(log))} == {3}


NUMBERS = Schema((Feature("x", "numeric"),), "numeric", "price")


def numbers():
    """The predictions of a regressor, some of them missing; from the 300th on their errors are four times as large."""
    rng, events, due = np.random.default_rng(9), [], []
    for number in range(500):
        said = None if number % 40 == 0 else float(rng.normal(100.0, 20.0))
        truth = (said or 0.0) + float(rng.normal(0.0, 1.0 if number < 300 else 4.0))
        events += prediction(MODEL, f"p{number}", [[float(rng.normal())]], [said])
        due.append(label(f"p{number}", "text" if number % 60 == 1 else truth))
        events += [due.pop(0)] if len(due) > 20 else []
    return records([promotion(MODEL, "1"), *events, *due])


def of_numbers():
    sample = {"x": [0.0, 1.0], "prediction": [80.0, 120.0]}
    far = (EvidentlyLimit("far", "wasserstein", 9.0, columns=("x",)),)
    model_spec = MonitorSpec(CountWindow(20, 10), far, Governor(confirm=1, of=1), errors=errors())
    return Fleet({MODEL: model_spec}, lambda m, v: prepare(m, v, NUMBERS, sample), live=lambda m: None, annotation="a")


def test_the_errors_of_a_regressor_rise_the_same_however_often_it_is_restored():
    log, whole, running, outcomes = numbers(), of_numbers(), of_numbers(), []
    expected = whole.feed(log)
    for start in range(0, len(log), 90):
        state, running = running.state(0), of_numbers()
        assert running.restore(0, msgspec.msgpack.decode(msgspec.msgpack.encode(state))) == []
        outcomes += running.feed(log[start : start + 90])
    assert told(outcomes) == told(expected)
    assert msgspec.msgpack.encode(running.state(0)) == msgspec.msgpack.encode(whole.state(0))
    first = next(one for one in of_errors(expected) if one.drift)
    assert first.findings[0].signal.startswith("rank of the error up 0.4")
    assert first.findings[0].feature == "price"
    counts = labels_of(whole)["counts"]
    assert (counts["labelled"], counts["rows_of_wrong_kind"]) == (500 - 13 - 9, 13 + 9)
    assert labels_of(whole)["error"] > 2.0, "in the target's own units"


def test_a_verdict_on_errors_is_not_said_again_when_the_schema_changes():
    said = [event for number in range(15) for event in prediction(MODEL, f"p{number}", [[0.0]], ["1"])]
    labels = [label(f"p{number}", "1") for number in range(15)]
    broken = [event for number in range(3) for event in prediction(MODEL, f"u{number}", [[0.0, 1.0]], ["1"])]
    outcomes = fleet().feed(records([promotion(MODEL, "1"), *said, *labels, *broken]))
    assert [one.of_window for one in outcomes if isinstance(one, Verdict) and one.of_window] == ["errors", "schema"]


def test_a_canarys_labels_are_those_of_another_version():
    canary = [event for number in range(20) for event in prediction(MODEL, f"c{number}", [[0.0]], ["1"], version="2")]
    running = fleet()
    running.feed(records([promotion(MODEL, "1"), *canary, *[label(f"c{number}", "0") for number in range(20)]]))
    assert labels_of(running)["counts"] == {"other_version": 20}
