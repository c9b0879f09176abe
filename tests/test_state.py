"""State: whatever is snapshotted and restored wherever, the outcomes and the final state are those of an undisturbed run."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as altered

from inference.errors import DriftloopError, SnapshotError, VersionError
from inference.event import LABEL, own_event
from inference.log import Record
from inference.versions import Feature, Schema
from streaming.assemble import monitor_spec
from streaming.core.fleet import Fleet
from streaming.core.governor import Governor
from streaming.core.limits import DetectorLimit, EvidentlyLimit
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import prepare
from streaming.core.statistics import ALLOWED_KINDS
from streaming.core.verdict import Decision, Notice, Span, Verdict, as_object
from streaming.core.window import CountWindow
from streaming.detectors import Adwin, Kswin, PageHinkley
from streaming.settings import ModelSettings
from streaming.snapshots import Snapshot, decode, encode
from streaming.testing import finished, prediction, promotion, records

MODELS = ("ns/a", "ns/b")
SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "categorical", "y")
ANNOTATION = "driftloop.io/model-version"
DETECTORS = [Adwin(delta=0.2, clock=4), PageHinkley(threshold=2.0, min_instances=5), Kswin(alpha=0.1, window_size=20, stat_size=8)]
LIMITS = [
    *(EvidentlyLimit(f"e-{test}", test) for test in ALLOWED_KINDS),
    EvidentlyLimit("share", "auto", None, 0.5),
    *(DetectorLimit(f"d-{spec.kind}", spec.kind, spec.build, settings=spec.settings) for spec in DETECTORS),
]
FAST = tuple(limit for limit in LIMITS if limit.name in ("e-ks", "e-chisquare", "d-adwin", "d-page_hinkley"))


def reference(model, version):
    if version not in ("1", "2"):
        raise VersionError(f"{model} has no version {version!r}")
    rng = np.random.default_rng(0)
    sample = {
        "x": list(rng.normal(0.0 if version == "1" else 8.0, 1.0, 200)),
        "c": list(rng.choice(["a", "b"], 200)),
        "prediction": list(rng.choice(["0", "1"], 200)),
    }
    return prepare(model, version, SCHEMA, sample)


def spec(limits=FAST, size=12, slide=4, **governor):
    return MonitorSpec(CountWindow(size, slide), limits, Governor(**{"confirm": 1, "of": 3, "cooldown": 30.0, "max_run": 90.0, **governor}))


def fleet(specs=None, references=reference):
    specs = dict.fromkeys(MODELS, spec()) if specs is None else specs
    return Fleet(specs, references, live=lambda model: None, annotation=ANNOTATION)


def through_bytes(state):
    """As it comes back from a file."""
    return decode(encode(Snapshot(0, 0, {"fleet": state}), "log"), "log").body["fleet"]


def same_bytes(one, other):
    return msgspec.msgpack.encode(one) == msgspec.msgpack.encode(other)


def restored(running, partition, **options):
    anew = fleet(**options)
    return anew, anew.restore(partition, through_bytes(running.state(partition)))


def told(outcomes):
    """By model, as text: a NaN is not equal to itself."""
    by_model = defaultdict(list)
    for outcome in outcomes:
        model = outcome.verdict.model if isinstance(outcome, Decision) else outcome.model
        evidence = repr(outcome.evidence) if isinstance(outcome, Decision) else ""
        by_model[model].append(repr(as_object(outcome)) + evidence)
    return dict(by_model)


# The whole: any events, any cuts, restored anywhere

CELLS = st.one_of(
    st.floats(allow_nan=False),
    st.sampled_from([None, 0.0, -0.0, 1e308, -5e-324, 2**53 + 1, -(2**63), 2**64 - 1, 10**25, 10**400, float("nan"), True, "text", [1]]),
)
CATEGORIES = st.one_of(
    st.sampled_from([None, "a", "b", "", " ", "\u2028", "é", "e\u0301", "\U0001f600", "0", 0, 3.0, -0.0, True, "x" * 300]), st.text()
)
BURSTS = st.tuples(
    st.just("burst"), st.integers(1, 40), st.sampled_from([0.0, 8.0]), st.integers(0, 99), st.sampled_from(["", "", "1", "2"])
)
STEPS = st.one_of(
    BURSTS,
    BURSTS,
    BURSTS,
    st.tuples(st.just("odd"), st.lists(st.tuples(CELLS, CATEGORIES), min_size=1, max_size=3), st.one_of(CATEGORIES, CELLS)),
    st.tuples(st.just("request"), st.integers(0, 5)),
    st.tuples(st.just("response"), st.integers(0, 5)),
    st.tuples(st.just("label"), st.integers(0, 3)),
    st.tuples(st.just("promoted"), st.sampled_from(["1", "2", "9"]), st.integers(0, 2)),
    st.tuples(st.just("finished"), st.integers(0, 2)),
    st.tuples(st.just("broken"), st.sampled_from(["request", "label", "promoted", "finished"])),
    st.tuples(st.just("again"), st.integers(0, 60)),
    st.tuples(st.just("swap"), st.integers(1, 40)),
    st.tuples(st.just("foreign"), st.sampled_from(["ns/unknown", "ns/other"])),
    st.tuples(st.just("pause"), st.sampled_from([1.0, 40.0, 400.0])),
)


def events_of(model, step, number, sent):
    """The events of one step; `sent` are those before it."""
    kind, *rest = step
    if kind == "burst":
        count, centre, seed, version = rest
        rng = np.random.default_rng(seed)
        rows = [[[float(rng.normal(centre, 1.0)), str(rng.choice(["a", "b"]))], str(rng.integers(2))] for _ in range(count)]
        return [
            event
            for place, (row, said) in enumerate(rows)
            for event in prediction(model, f"p{number}-{place}", [row], [said], version=version)
        ]
    if kind == "odd":
        # Python's JSON writes what orjson would not: numbers of any size, NaN.
        bodies = {"instances": rest[0]}, {"predictions": [rest[1]] * len(rest[0])}
        return [
            altered(half, data=json.dumps(body).encode())
            for half, body in zip(prediction(model, f"o{number}", [], []), bodies, strict=True)
        ]
    if kind in ("request", "response"):
        return [prediction(model, f"lone{rest[0]}", [[1.0, "a"]], ["0"])[kind == "response"]]
    if kind == "label":
        return [own_event(LABEL, {"prediction_id": "p", "labels": [1]}, model=model, source="s", id_=f"l{rest[0]}", now=0.0)]
    if kind == "promoted":
        return [altered(promotion(model, rest[0]), id=f"promoted-{rest[0]}-{rest[1]}")]
    if kind == "finished":
        return [finished(model, f"r{rest[0]}")]
    if kind == "broken":
        whole = {"request": prediction(model, f"b{number}", [], [])[0], "promoted": promotion(model, "1"), "finished": finished(model, "r")}
        return [altered(whole.get(rest[0]) or events_of(model, ("label", 9), number, sent)[0], id=f"broken{number}", data=b"{")]
    if kind == "again":
        return sent[-1 - rest[0] :][:1]
    if kind == "foreign":
        return [*prediction(rest[0], f"f{number}", [[1.0]], [1])]
    return []


@st.composite
def logs(draw):
    """Two partitions with both models on each, as lists of records."""
    steps = draw(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(MODELS), STEPS), min_size=8, max_size=40))
    parts = {0: [], 1: []}
    for partition in parts:
        if draw(st.booleans()):
            parts[partition] += [Record(partition, place, 1.0, promotion(model, "1")) for place, model in enumerate(MODELS)]
    now = 1.0
    for number, (partition, model, step) in enumerate(steps):
        log = parts[partition]
        now += step[1] if step[0] == "pause" else 0.5
        if step[0] == "swap" and len(log) > step[1]:
            one, other = log[-1], log[-1 - step[1]]
            log[-1], log[-1 - step[1]] = altered(one, event=other.event), altered(other, event=one.event)
        sent = [record.event for record in log if record.event.model == model]
        for event in events_of(model, step, number, sent):
            # Kafka leaves out offsets, and a log need not begin at 0.
            log.append(Record(partition, (log[-1].offset if log else 7) + 1 + number % 2, now, event))
    return parts


def with_ends_of_runs(log):
    """The log with an end for each run that it starts, a few records after the start."""
    log = list(log)
    for outcome in fleet().feed(log):
        if isinstance(outcome, Decision) and outcome.run_id:
            place = next(place for place, record in enumerate(log) if record.offset == outcome.verdict.window.last_offset) + 6
            log.insert(place, altered(log[min(place, len(log) - 1)], event=finished(outcome.verdict.model, outcome.run_id)))
            break
    return [altered(record, offset=10 + 2 * place) for place, record in enumerate(log)]


@settings(max_examples=100, deadline=None)
@given(parts=logs(), data=st.data())
def test_restoring_anywhere_changes_neither_the_outcomes_nor_the_final_state(parts, data):
    parts = {partition: with_ends_of_runs(log) for partition, log in parts.items()}
    undisturbed = fleet()
    expected = undisturbed.feed(
        sorted([record for log in parts.values() for record in log], key=lambda record: (record.timestamp, record.partition))
    )
    for partition, log in parts.items():
        of_partition = [one for one in expected if (one.partition if isinstance(one, Notice) else _window(one).partition) == partition]
        running, outcomes = fleet(), []
        places = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=6)))
        for start, stop in pairwise([0, *places, len(log)]):
            before = running.state(partition)
            running, notices = restored(running, partition)
            assert {notice.kind for notice in notices} <= {"unmonitored"}
            assert same_bytes(running.state(partition), before)
            outcomes += running.feed(log[start:stop])
        assert told(outcomes) == told(of_partition)
        assert same_bytes(running.state(partition), undisturbed.state(partition))


def _window(outcome):
    return outcome.window if isinstance(outcome, Verdict) else outcome.verdict.window


def story(model="ns/a", batch=1):
    rng = np.random.default_rng(5)

    def stretch(name, count, centre):
        for number in range(count):
            rows = [[float(rng.normal(centre, 1.0)), str(rng.choice(["a", "b"]))] for _ in range(batch)]
            yield from prediction(model, f"{name}{number}", rows, [str(rng.integers(2)) for _ in rows])

    events = [promotion(model, "1"), *stretch("q", 60, 0.0), *stretch("d", 60, 8.0), promotion(model, "2", "1"), *stretch("n", 60, 8.0)]
    return records(events)


def test_the_story_has_verdicts_decisions_and_a_promotion_on_either_side_of_a_restart():
    log = story()
    whole = fleet().feed(log)
    assert {type(outcome).__name__ for outcome in whole} == {"Verdict", "Decision", "Notice"}
    assert {outcome.action for outcome in whole if isinstance(outcome, Decision)} == {"retrain", "hold"}
    for place in (150, 200, 245):
        running = fleet()
        first = running.feed(log[:place])
        anew, notices = restored(running, 0)
        assert notices == []
        assert anew.status() == running.status()
        assert told(first + anew.feed(log[place:])) == told(whole)


def test_a_watcher_that_goes_back_to_its_snapshot_says_the_same_again():
    log = story()
    running = fleet()
    running.feed(log[:200])
    state = through_bytes(running.state(0))
    once = running.feed(log[200:])
    assert running.restore(0, state) == []
    assert told(running.feed(log[200:])) == told(once) != {}


def test_each_partition_is_restored_and_forgotten_by_itself():
    running = fleet()
    logs_ = {partition: [altered(record, partition=partition) for record in story()] for partition in (3, 4)}
    whole = {partition: told(fleet().feed(log)) for partition, log in logs_.items()}
    first = {partition: running.feed(log[:200]) for partition, log in logs_.items()}
    kept = running.state(4)
    anew, _ = restored(running, 3)
    assert same_bytes(anew.state(3), running.state(3))
    assert anew.state(4)["models"] == {}
    running.forget(3)
    assert running.state(3) == fleet().state(3)
    assert same_bytes(running.state(4), kept)
    assert told(first[4] + running.feed(logs_[4][200:])) == whole[4]
    assert told(first[3] + anew.feed(logs_[3][200:])) == whole[3] != whole[4]


def test_the_state_is_the_same_in_every_process():
    script = """if True:
        import sys, msgspec, test_state
        running = test_state.fleet()
        running.feed(test_state.story()[:200])
        sys.stdout.buffer.write(msgspec.msgpack.encode(running.state(0)))
    """
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])

    def in_a_process(seed):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        return subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment).stdout

    here = fleet()
    here.feed(story()[:200])
    assert in_a_process("1") == msgspec.msgpack.encode(here.state(0))


# What was remembered no longer fits


def halfway(place=245, **options):
    running = fleet(**options)
    running.feed(story()[:place])
    return running


def monitor_of(running, model="ns/a"):
    return running.state(0)["models"][model]["monitor"]


CHANGES = {
    "size": spec(size=13),
    "slide": spec(slide=3),
    "another limit": spec(limits=LIMITS[:1]),
    "one limit more": spec(limits=(*FAST, LIMITS[0] if LIMITS[0] not in FAST else LIMITS[1])),
    "other settings": spec(limits=tuple(replace(limit, settings="other") if isinstance(limit, DetectorLimit) else limit for limit in FAST)),
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_another_window_or_other_limits_start_the_monitor_anew_and_keep_the_rest(changed):
    running = halfway()
    anew, (notice,) = restored(running, 0, specs={"ns/a": changed})
    place = story()[244]
    assert (notice.kind, notice.model, notice.version, notice.partition, notice.time) == ("restarted", "ns/a", "2", 0, place.timestamp)
    assert notice.data["reason"] == "the window, the limits or the columns changed"
    before, after = running.state(0)["models"]["ns/a"], anew.state(0)["models"]["ns/a"]
    assert {**before, "monitor": None} == {**after, "monitor": None}
    assert (after["monitor"]["window"]["rows"], after["monitor"]["verdicts"], after["monitor"]["last"]) == (0, 0, None)
    assert restored(running, 0, specs={"ns/a": changed})[1] == [notice], "said again it has the same id"
    assert next(o.predictions for o in anew.feed(story()[245:]) if isinstance(o, Verdict)) == changed.window.size


def test_another_governor_goes_on_with_what_is_remembered():
    running = halfway(200)
    before = running.state(0)["models"]["ns/a"]["governor"]
    assert before["recent"] == [True, True, True]
    assert before["run"]
    anew, notices = restored(running, 0, specs={"ns/a": spec(of=2)})
    assert notices == []
    assert anew.state(0)["models"]["ns/a"]["governor"] == {**before, "recent": [True, True]}
    assert same_bytes(monitor_of(anew), monitor_of(running))


def test_the_governor_remembers_incident_run_cool_down_and_what_it_said():
    def verdict(number, drift):
        return Verdict(f"v{number}", "ns/a", "1", number, 100, Span(0, 0, number, 0.0, 10.0 * number), (), ("l",) if drift else ())

    governor = Governor(confirm=2, of=3, cooldown=60.0, max_run=40.0)
    drifts = [True, True, True, False, True, True, True, True, False, False, False, True, True]
    straight, restarted = governor.build(), governor.build()
    said = []
    for number, drift in enumerate(drifts):
        anew = governor.build()
        anew.restore(restarted.state())
        restarted = anew
        one = verdict(number, drift)
        said.append(straight.judge(one, one.window))
        assert restarted.judge(one, one.window) == said[-1]
        assert restarted.status() == straight.status()
        assert restarted.state() == straight.state()
    assert [one.action if one else "" for one in said].count("retrain") == 2
    run = straight.active_run
    straight.finished(run)
    restarted.finished(run)
    assert restarted.state() == straight.state()


def test_a_version_whose_reference_is_gone_goes_on_unmonitored_and_says_so_as_ever():
    running = halfway(130)

    def gone(model, version):
        raise VersionError(f"{model} has no version {version!r}")

    expected = fleet(references=gone).feed(story()[:130])
    anew, notices = restored(running, 0, references=gone)
    assert notices == [one for one in expected if one.kind == "unmonitored"]
    assert anew.status()["models"]["ns/a"]["unmonitored"] == "ns/a has no version '1'"
    outcomes = anew.feed(story()[130:])
    assert [(one.kind, one.version) for one in outcomes] == [("promoted", "2"), ("unmonitored", "2")]


def test_a_version_whose_reference_has_come_is_monitored_from_here_on():
    lonely = fleet(references=lambda model, version: reference(model, "9"))
    lonely.feed(story()[:245])
    anew, (notice,) = restored(lonely, 0)
    assert (notice.kind, notice.version, notice.data["reason"]) == ("restarted", "2", "its reference can be read now")
    assert any(isinstance(outcome, Verdict) for outcome in anew.feed(story()[245:]))


def test_a_limit_that_no_longer_fits_the_reference_leaves_the_version_unmonitored():
    anew, (notice,) = restored(halfway(), 0, specs={"ns/a": spec(limits=(EvidentlyLimit("l", "ks", columns=("nope",)),))})
    assert (notice.kind, notice.version) == ("unmonitored", "2")
    assert "no such column nope" in notice.data["reason"]
    assert monitor_of(anew) is None


def test_a_reference_with_other_columns_starts_the_monitor_anew():
    def other(model, version):
        schema = Schema((Feature("x", "numeric"), Feature("d", "categorical")), "categorical", "y")
        return prepare(model, version, schema, {"x": [0.0, 1.0], "d": ["a", "b"], "prediction": ["0", "1"]})

    _, (notice,) = restored(halfway(), 0, references=other)
    assert notice.data["reason"] == "the window, the limits or the columns changed"


def test_a_model_that_is_no_longer_configured_is_dropped_and_a_new_one_starts_empty():
    running = halfway()
    running.feed(records(prediction("ns/c", "p", [[1.0]], [1]), first=1000))
    anew, notices = restored(running, 0, specs={"ns/c": spec()})
    assert notices == []
    assert anew.state(0) == {"version": 1, "models": {}, "unknown": {}}
    assert restored(running, 0)[0].status()["unknown_models"] == {"ns/c": 2}


def test_detectors_of_another_river_start_anew_and_the_rest_of_the_monitor_goes_on():
    running = halfway()
    state = running.state(0)
    memory = state["models"]["ns/a"]["monitor"]["limits"][2]
    memory["detectors"][-1] = b"0.25.0\n" + memory["detectors"][-1].partition(b"\n")[2]
    anew = fleet()
    (notice,) = anew.restore(0, through_bytes(state))
    assert notice.kind == "restarted"
    assert notice.data["reason"].startswith(
        "the detectors of limit 'd-adwin' start anew: the detectors were written by river 0.25.0, this is "
    )
    fresh, before, after = fleet(), monitor_of(running), monitor_of(anew)
    fresh.feed(story()[:1])
    assert after["limits"][2]["detectors"] == monitor_of(fresh)["limits"][2]["detectors"]
    assert {**after, "limits": 0} == {**before, "limits": 0}
    assert after["limits"][3] == before["limits"][3]
    assert notice.id != restored(running, 0, specs={"ns/a": CHANGES["size"]})[1][0].id, "another reason is another notice"


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: detector.kind)
def test_every_setting_in_the_configuration_counts(detector):
    plain = {"window": {"size": 50, "slide": 10}, "limits": [{"kind": "detector", "detector": detector.model_dump()}]}
    changed = [{**plain, "window": {"size": 51, "slide": 10}}, {**plain, "window": {"size": 50, "slide": 11}}]
    for name, value in detector:
        if name != "kind":
            other = {**detector.model_dump(), name: value / 2 if isinstance(value, float) else value + 1}
            changed.append({**plain, "limits": [{"kind": "detector", "detector": other}]})
    known = reference("ns/a", "1")
    prints = [Monitor(monitor_spec(ModelSettings.model_validate(one)), known, 0).state()["fingerprint"] for one in (plain, plain, *changed)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == len(prints) - 1 == len(type(detector).model_fields) + 2


# Any other state


@st.composite
def places(draw, value):
    """The path of some value within: a level at a time, so that one among few is as likely as one among many."""
    path = []
    while isinstance(value, dict | list) and value and (not path or draw(st.integers(0, 9))):
        path.append(draw(st.sampled_from([*value] if isinstance(value, dict) else range(len(value)))))
        value = value[path[-1]]
    return path


def with_leaf(value, path, leaf):
    if not path:
        return leaf
    members = dict(value) if isinstance(value, dict) else list(value)
    members[path[0]] = with_leaf(members[path[0]], path[1:], leaf)
    return members


LONE = [prediction("ns/a", f"lone{number}", [[1.0, "a"]], ["0"]) for number in range(4)]
RICH = story()[:140] + records([halves[number % 2] for number, halves in enumerate(LONE)], first=2000)
PLAIN = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"), float("inf"), "", "x", b"", b"x" * 16]
    ),
    st.lists(st.integers(-1, 1), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), leaf=PLAIN)
def test_any_other_state_is_a_snapshot_error_or_goes_on_and_never_anything_else(data, leaf):
    running = fleet()
    running.feed(RICH)
    state = running.state(0)
    where = data.draw(places(state))
    anew = fleet()
    try:
        anew.restore(0, with_leaf(state, where, leaf))
    except SnapshotError as error:
        assert "partition 0" in str(error)
        assert anew.state(0)["models"] == {}, "nothing is held after a failure"
    else:
        anew.feed(
            records([event for number in range(40) for event in prediction("ns/a", f"next{number}", [[9.0, "b"]], ["1"])], first=3000)
        )
        anew.state(0)
        anew.status()


@pytest.mark.parametrize("state", [{}, {"version": 2, "models": {}, "unknown": {}}, {"version": 1, "models": {"ns/a": {}}, "unknown": {}}])
def test_a_state_that_lacks_something_or_is_newer_is_refused(state):
    running = halfway()
    with pytest.raises(SnapshotError, match="no state that this driftloop knows"):
        running.restore(0, state)
    assert running.state(0) == fleet().state(0), "nothing is held of the partition"


@pytest.mark.parametrize("offset", [-1, 2**63])
def test_a_half_at_an_offset_that_no_log_has_is_refused(offset):
    running = fleet()
    running.feed(RICH)
    with pytest.raises(SnapshotError, match=r"should be (greater|less)"):
        fleet().restore(0, with_leaf(running.state(0), ["models", "ns/a", "pairing", "halves", 0, 3], offset))


def test_what_is_wrong_is_told_without_the_values():
    running = halfway(120)
    state = running.state(0)
    state["models"]["ns/a"]["pairing"]["seen"] = ["a customer's name"]
    with pytest.raises(DriftloopError, match=r"pairing\.seen|seen: ") as caught:
        fleet().restore(0, state)
    assert "customer" not in str(caught.value)


def test_a_state_between_two_feeds_has_nothing_that_waits():
    running = halfway()
    assert through_bytes(running.state(0)) == running.state(0)
