"""The fleet: pairs, versions, verdicts and decisions from records alone, the same wherever a batch is cut."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from inference.errors import VersionError
from inference.event import LABEL, Event, own_event
from inference.versions import Feature, Schema
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import DetectorLimit, EvidentlyLimit
from streaming.core.monitor import MonitorSpec
from streaming.core.reference import prepare
from streaming.core.verdict import Decision, Notice, Verdict
from streaming.core.window import CountWindow
from streaming.detectors import Adwin
from streaming.testing import finished, prediction, promotion, records

MODEL = "default/iris"
SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "categorical", "y")
ANNOTATION = "driftloop.io/model-version"


def reference(model, version):
    if version not in ("1", "2"):
        raise VersionError(f"{model} has no version {version!r}")
    rng = np.random.default_rng(0)
    centre = 0.0 if version == "1" else 10.0
    sample = {
        "x": list(rng.normal(centre, 1.0, 400)),
        "c": list(rng.choice(["a", "b"], 400)),
        "prediction": list(rng.choice(["0", "1"], 400)),
    }
    return prepare(model, version, SCHEMA, sample)


def spec(size=50, slide=10, **governor):
    limits = (EvidentlyLimit("ks", "ks", 1e-6), DetectorLimit("adwin", "adwin", Adwin().build))
    return MonitorSpec(CountWindow(size, slide), limits, Governor(**{"confirm": 2, "of": 3, "cooldown": 1000.0, **governor}))


def fleet(model_spec=None, live=None):
    return Fleet({MODEL: model_spec or spec()}, reference, live=lambda model: live, annotation=ANNOTATION)


def traffic(count, centre, *, seed=1, first=0, version="", batch=1):
    rng = np.random.default_rng(seed)
    events = []
    for number in range(count):
        rows = [[float(rng.normal(centre, 1.0)), str(rng.choice(["a", "b"]))] for _ in range(batch)]
        events += prediction(MODEL, f"p{first + number}", rows, [int(rng.integers(2)) for _ in rows], version=version)
    return events


def story():
    """Promotion of 1, quiet, drift, a run that is kept, promotion of 2, quiet against the new reference."""
    return [
        promotion(MODEL, "1"),
        *traffic(80, 0.0),
        *traffic(80, 10.0, seed=2, first=100),
        promotion(MODEL, "2", "1"),
        *traffic(80, 10.0, seed=3, first=200),
    ]


def test_the_story_is_told_in_order():
    outcomes = fleet().feed(records(story()))
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    decisions = [outcome for outcome in outcomes if isinstance(outcome, Decision)]
    assert [(n.kind, n.version) for n in outcomes if isinstance(n, Notice)] == [("promoted", "1"), ("promoted", "2")]
    assert [(v.version, v.predictions, v.drift) for v in verdicts] == [
        *(("1", seen, False) for seen in (50, 60, 70, 80)),
        *(("1", seen, seen > 90) for seen in range(90, 161, 10)),
        *(("2", seen, False) for seen in (50, 60, 70, 80)),
    ]
    assert [d.action for d in decisions] == ["hold", "retrain", "hold"]
    started = decisions[1]
    assert started.verdict.predictions == 110
    assert started.evidence["x"][-1] == pytest.approx(10.0, abs=4.0)
    assert len(started.evidence["x"]) == 50
    # The drift began with prediction 81, whose response is record 2 * 80 + 2.
    assert abs(started.drift_began.first_offset - 162) <= 6
    assert started.drift_began.last_offset == started.verdict.window.last_offset == 1 + 2 * 110 - 1


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 481), max_size=12))
def test_where_batches_are_cut_changes_nothing(cuts):
    stretch = records(story())
    whole = fleet().feed(stretch)
    cutting = fleet()
    places = [0, *sorted(set(cuts)), len(stretch)]
    parts = [outcome for start, stop in pairwise(places) for outcome in cutting.feed(stretch[start:stop])]
    assert parts == whole


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_duplicates_and_foreign_events_change_no_verdict(data):
    events = story()
    noise = [
        Event("x", "s", "io.other", extensions={"namespace": "default", "inferenceservicename": "iris"}),
        *traffic(1, 99.0, first=900)[:1],
    ]
    places = data.draw(st.lists(st.integers(1, len(events)), max_size=20))
    noisy = list(events)
    for place in sorted(places, reverse=True):
        earlier = data.draw(st.integers(0, place - 1))
        noisy.insert(place, data.draw(st.sampled_from([*noise, events[earlier]])))

    def said(stretch):
        return [(o.version, o.predictions, o.breached) for o in fleet().feed(records(stretch)) if isinstance(o, Verdict)]

    assert said(noisy) == said(events)


def test_responses_before_their_requests_give_the_same_verdicts():
    events = traffic(100, 0.0)
    swapped = [event for number in range(0, len(events), 2) for event in (events[number + 1], events[number])]

    def said(stretch):
        return [(o.predictions, o.findings) for o in fleet(live="1").feed(records(stretch)) if isinstance(o, Verdict)]

    assert said(swapped) == said(events) != []


def test_a_batch_request_counts_each_of_its_rows():
    single = [o for o in fleet(live="1").feed(records(traffic(96, 0.0))) if isinstance(o, Verdict)]
    batched = [o for o in fleet(live="1").feed(records(traffic(12, 0.0, batch=8))) if isinstance(o, Verdict)]
    assert [v.predictions for v in batched] == [v.predictions for v in single] == [50, 60, 70, 80, 90]


def test_another_versions_traffic_never_enters_the_live_versions_window():
    mixed = fleet()
    events = [promotion(MODEL, "1")]
    for ours, canary in zip(traffic(60, 0.0, version="1"), traffic(60, 10.0, first=500, version="2"), strict=True):
        events += [ours, canary]
    outcomes = mixed.feed(records(events))
    assert not any(outcome.drift for outcome in outcomes if isinstance(outcome, Verdict))
    counts = mixed.status()["models"][MODEL]["counts"]
    assert (counts["predictions"], counts["other_version"]) == (60, 60)


def test_predictions_after_the_promotion_are_the_new_versions_from_exactly_that_position():
    events = [promotion(MODEL, "1"), *traffic(49, 0.0), promotion(MODEL, "2", "1"), *traffic(50, 10.0, first=100)]
    (verdict,) = [o for o in fleet().feed(records(events)) if isinstance(o, Verdict)]
    assert (verdict.version, verdict.predictions) == ("2", 50)
    assert verdict.window.first_offset == 1 + 98 + 1 + 1


def test_a_version_without_a_reference_is_unmonitored_and_says_so_once():
    lonely = fleet()
    notices = lonely.feed(records([promotion(MODEL, "9"), *traffic(60, 0.0)]))
    assert [(n.kind, n.version) for n in notices] == [("promoted", "9"), ("unmonitored", "9")]
    assert "no version '9'" in notices[1].data["reason"]
    assert lonely.status()["models"][MODEL]["counts"]["unmonitored"] == 60


def test_what_a_version_without_a_reference_predicts_enters_no_window_of_the_one_before():
    left = fleet()
    left.feed(records([promotion(MODEL, "1"), *traffic(60, 0.0)]))
    left.feed(records([promotion(MODEL, "9", "1"), *traffic(5, 0.0, first=100)], first=200))
    counts = left.status()["models"][MODEL]["counts"]
    assert (counts["predictions"], counts["unmonitored"]) == (60, 5)


def test_without_a_promotion_the_annotation_names_the_version_and_then_the_repository():
    annotated = fleet(live="2").feed(records(traffic(50, 0.0, version="1")))
    assert [o.version for o in annotated] == ["1"]
    assert [o.version for o in fleet(live="1").feed(records(traffic(50, 0.0)))] == ["1"]
    nameless = fleet()
    assert nameless.feed(records(traffic(50, 0.0))) == []
    assert nameless.status()["models"][MODEL]["counts"]["no_version"] == 50


def test_what_cannot_be_read_is_counted_by_reason_and_the_rest_goes_on():
    def broken(id_, request, response):
        first, second = prediction(MODEL, id_, [], [])
        return [
            Event(first.id, first.source, first.type, first.time, "application/json", first.extensions, request),
            Event(second.id, second.source, second.type, second.time, "application/json", second.extensions, response),
        ]

    events = [
        *broken("a", b"{not json", b'{"predictions": [1]}'),
        *broken("b", b'{"instances": [[1.0, "a"]]}', b'{"predictions": [1, 2]}'),
        *broken("c", b'{"instances": [[1.0]]}', b'{"predictions": [1]}'),
        *broken("d", b'{"instances": [{"x": 1.0}]}', b'{"predictions": [1]}'),
        *broken("e", b'{"instances": [["one", "a"]]}', b'{"predictions": [1]}'),
        own_event(LABEL, {"labels": [1]}, model=MODEL, source="s", id_="l1", now=0.0),
        own_event(LABEL, {"prediction_id": "nobody", "labels": [1]}, model=MODEL, source="s", id_="l2", now=0.0),
        *traffic(50, 0.0),
    ]
    reading = fleet(live="1")
    outcomes = reading.feed(records(events))
    assert [o.predictions for o in outcomes if isinstance(o, Verdict)] == [50]
    counts = reading.status()["models"][MODEL]["counts"]
    unreadable = {name.removeprefix("unreadable "): count for name, count in counts.items() if name.startswith("unreadable")}
    assert unreadable == {"bad_json": 1, "row_mismatch": 1, "wrong_width": 1, "missing_feature": 1, "not_a_number": 1, "bad_label": 1}
    assert counts["labels"] == 1


def test_missing_values_are_no_crash_and_no_drift_of_the_rest():
    events = [event for n in range(50) for event in prediction(MODEL, f"m{n}", [[None, None]], [1])]
    (verdict,) = [o for o in fleet(live="1").feed(records(events)) if isinstance(o, Verdict)]
    assert [f.unknown for f in verdict.findings if f.feature == "x" and f.limit == "ks"] == ["the window has no values"]


def test_a_promotion_or_an_end_of_a_run_that_comes_twice_is_told_once():
    events = [promotion(MODEL, "1"), promotion(MODEL, "2", "1"), finished(MODEL, "r")]
    doubled = fleet()
    outcomes = doubled.feed(records(events + events))
    assert [(one.kind, one.version) for one in outcomes] == [("promoted", "1"), ("promoted", "2"), ("retraining_finished", "")]
    assert doubled.status()["models"][MODEL]["version"] == "2", "the repeat of an old promotion does not bring the old version back"
    assert doubled.status()["models"][MODEL]["counts"]["duplicate_messages"] == 3


def test_another_source_id_or_type_is_another_message():
    first = promotion(MODEL, "1")
    back = [promotion(MODEL, "2"), replace(first, id="another")]
    again = [promotion(MODEL, "2"), replace(first, source="another")]
    ended = [replace(finished(MODEL, "r"), id=first.id, source=first.source)]
    for others in (back, again, ended):
        assert len(fleet().feed(records([first, *others]))) == 1 + len(others)


def test_many_labels_do_not_make_a_promotion_forgotten():
    labels = [own_event(LABEL, {"prediction_id": "p", "labels": [1]}, model=MODEL, source="s", id_=f"l{n}", now=0.0) for n in range(1100)]
    events = [promotion(MODEL, "1"), promotion(MODEL, "2"), *labels, promotion(MODEL, "1"), labels[-1], labels[0]]
    reading = fleet()
    assert [one.version for one in reading.feed(records(events))] == ["1", "2"]
    counts = reading.status()["models"][MODEL]["counts"]
    assert (counts["labels"], counts["duplicate_messages"]) == (1101, 2), "the last 1,000 labels are known, the first is not"


def test_every_outcome_names_its_partition():
    outcomes = fleet(live="1").feed([replace(record, partition=5) for record in records(story())])
    assert {one.partition for one in outcomes if isinstance(one, Notice)} == {5}
    assert {one.window.partition for one in outcomes if isinstance(one, Verdict)} == {5}
    assert {one.verdict.window.partition for one in outcomes if isinstance(one, Decision)} == {5}
    assert all(one.as_dict()["partition"] == 5 for one in outcomes if isinstance(one, Notice))
    (lost,) = [o for o in fleet(live="9").feed(records(traffic(1, 0.0), partition=6)) if isinstance(o, Notice)]
    assert (lost.kind, lost.partition) == ("unmonitored", 6)


def test_partitions_do_not_know_of_each_other():
    alone = fleet().feed(records(story()))
    both = fleet()
    mixed = [record for pair in zip(records(story()), records(story(), partition=1), strict=True) for record in pair]
    outcomes = both.feed(mixed)
    assert [o for o in outcomes if not isinstance(o, Notice) and getattr(o, "verdict", o).window.partition == 0] == [
        o for o in alone if not isinstance(o, Notice)
    ]
    assert len(outcomes) == 2 * len(alone)


def test_a_model_on_two_partitions_is_shown_where_it_is_newest_with_the_counts_of_both():
    wide = fleet()
    wide.feed(records([promotion(MODEL, "1"), *traffic(60, 0.0)]))
    later = records([promotion(MODEL, "2"), *traffic(20, 10.0)], partition=1)
    wide.feed([replace(record, timestamp=record.timestamp + 1000.0) for record in later])
    shown = wide.status()["models"][MODEL]
    assert (shown["version"], shown["predictions"], shown["counts"]["predictions"], shown["counts"]["paired"]) == ("2", 20, 80, 80)
    wide.forget(1)
    shown = wide.status()["models"][MODEL]
    assert (shown["version"], shown["predictions"], shown["counts"]["predictions"]) == ("1", 60, 60)
    wide.forget(0)
    assert wide.status()["models"][MODEL] == fleet().status()["models"][MODEL]


def test_a_model_nobody_configured_is_counted_and_left_alone():
    strange = fleet()
    assert strange.feed(records(prediction("other/model", "1", [[1.0]], [1]))) == []
    strange.feed(records(prediction("other/model", "2", [[1.0]], [1]), partition=1))
    assert strange.status()["unknown_models"] == {"other/model": 4}
    strange.feed(records([event for n in range(1010) for event in prediction(f"other/m{n}", "1", [[1.0]], [1])]))
    assert len(strange.status()["unknown_models"]) == 1001
    assert strange.status()["unknown_models"]["(others)"] == 22


def test_a_finished_run_lets_the_next_one_start_after_the_cool_down():
    drifting = [promotion(MODEL, "1"), *traffic(200, 10.0)]
    outcomes = fleet(spec(cooldown=0.0)).feed(records(drifting))
    run = next(o.run_id for o in outcomes if isinstance(o, Decision) and o.run_id)
    assert [o.action for o in outcomes if isinstance(o, Decision)] == ["hold", "retrain", "hold"]
    with_end = [*drifting[:200], finished(MODEL, run), *drifting[200:]]
    actions = [o.action for o in fleet(spec(cooldown=0.0)).feed(records(with_end)) if isinstance(o, Decision)]
    assert actions == ["hold", "retrain", "hold", "retrain", "hold"]


def test_a_limit_that_does_not_fit_the_reference_makes_the_version_unmonitored():
    wrong = MonitorSpec(CountWindow(50, 10), (EvidentlyLimit("l", "ks", columns=("nope",)),), Governor())
    outcomes = fleet(wrong).feed(records([promotion(MODEL, "1"), *traffic(60, 0.0)]))
    assert [o.kind for o in outcomes] == ["promoted", "unmonitored"]
    assert "no such column nope" in outcomes[1].data["reason"]
