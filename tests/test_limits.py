"""Limits: quiet on what the reference knows, over on what it does not, and clear about what they cannot judge."""

import os
import pickle
import random
from collections import deque
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from inference.errors import SettingsError, SnapshotError
from inference.versions import Feature, Schema
from streaming.core.limits import DetectorLimit, EvidentlyLimit
from streaming.core.onset import drift_began
from streaming.core.reference import prepare
from streaming.core.statistics import ALLOWED_KINDS
from streaming.core.verdict import Finding
from streaming.core.window import CountWindow, Rows
from streaming.detectors import Adwin, DetectorSpec, Kswin, PageHinkley
from streaming.detectors.river import MAX_STATE

SCHEMA = Schema((Feature("x", "numeric"), Feature("y", "numeric"), Feature("c", "categorical")), "categorical", "t")
DETECTORS = [Adwin(), PageHinkley(), Kswin()]


def sample(seed, rows, shift=0.0, spread=1.0, share=0.5):
    rng = np.random.default_rng(seed)
    return {
        "x": list(rng.normal(50.0, 1000.0, rows) * spread + shift * 1000.0),
        "y": list(rng.exponential(2.0, rows)),
        "c": list(rng.choice(["a", "b"], rows, p=[share, 1 - share])),
        "prediction": list(rng.choice(["0", "1"], rows)),
    }


REFERENCE = prepare("default/m", "1", SCHEMA, sample(1, 1000))


def as_rows(columns, reference=REFERENCE):
    arrays = [column.array(columns[column.name]) for column in reference.columns]
    return Rows.of(reference.columns, arrays, np.arange(len(arrays[0])), np.zeros(len(arrays[0])))


def judged(limit, *stretches, size=200):
    """Feed the stretches in order through a window of `size` and judge at the end."""
    window, judge = CountWindow(size, size).build(REFERENCE.columns), limit.build(REFERENCE, size)
    for columns in stretches:
        rows, start = as_rows(columns), 0
        while start < len(rows):
            part = rows.part(start, start + window.until_due)
            judge.observe(part)
            window.put(part)
            start += len(part)
    return *judge.judge(window), window


def ranks(column, cells):
    return column.ranks(column.codes(column.array(cells)))


def test_ranks_are_the_middle_of_each_values_share_of_the_reference():
    small = prepare("default/m", "1", SCHEMA, {"x": [1, 2, 2, 4], "y": [0.0] * 4, "c": ["b", "a", "b", "c"], "prediction": ["1"] * 4})
    number, _, name, _ = small.columns
    assert ranks(number, [0.0, 1.0, 2.0, 3.0, 9.0, None, float("inf")]).tolist()[:5] == [0.0, 0.125, 0.5, 0.75, 1.0]
    assert np.isnan(ranks(number, [None])[0])
    # Most frequent first, ties by name: b has half, then a and c a quarter each.
    assert ranks(name, ["b", "a", "c", "never seen"]).tolist() == [0.25, 0.625, 0.875, 1.0]
    assert np.isnan(ranks(name, [None])[0])


def test_any_column_over_breaches_and_the_findings_say_which():
    findings, breached, _ = judged(EvidentlyLimit("l", "ks", 1e-4), sample(2, 200, shift=1.0))
    assert breached
    assert [(f.feature, f.over) for f in findings] == [("x", True), ("y", False)]
    assert findings[0].score < 1e-4 == findings[0].threshold


def test_quiet_traffic_breaches_nothing():
    for limit in (EvidentlyLimit("l", "ks", 1e-4), EvidentlyLimit("p", "psi", 0.3), EvidentlyLimit("s", "auto", None, 0.5)):
        findings, breached, _ = judged(limit, sample(3, 200))
        assert not breached
        assert findings


def test_a_share_asks_for_that_many_columns():
    drifted = sample(2, 200, shift=1.0)
    assert judged(EvidentlyLimit("l", "ks", 1e-4, 0.5, ("x", "y")), drifted)[1], "1 of 2 is a share of 0.5"
    assert not judged(EvidentlyLimit("l", "ks", 1e-4, 0.51, ("x", "y")), drifted)[1]


def test_a_column_without_values_is_unknown_and_not_over():
    findings, breached, _ = judged(EvidentlyLimit("l", "ks", 0.05), {**sample(4, 200), "x": [None] * 200})
    assert (findings[0].feature, findings[0].over, findings[0].unknown) == ("x", False, "the window has no values")
    assert np.isnan(findings[0].score)
    assert not breached


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        (EvidentlyLimit("l", "ks", columns=("nope",)), "no such column nope; default/m has x, y, c, prediction"),
        (EvidentlyLimit("l", "ks", columns=("c",)), "cannot take c"),
        (EvidentlyLimit("l", "chisquare", columns=("x", "c")), "cannot take x"),
    ],
)
def test_a_limit_that_does_not_fit_the_model_says_so(limit, says):
    with pytest.raises(SettingsError, match=says):
        limit.build(REFERENCE, 100)


@pytest.mark.parametrize("spec", DETECTORS, ids=lambda spec: spec.kind)
def test_a_detector_sees_a_shift_whatever_the_scale_and_is_quiet_before(spec):
    limit = DetectorLimit("d", spec.kind, spec.build)
    _, quiet, _ = judged(limit, sample(5, 600))
    findings, breached, _ = judged(limit, sample(5, 600), sample(6, 200, shift=2.0))
    assert not quiet
    assert breached
    assert next(f for f in findings if f.feature == "x").over


def test_adwin_sees_a_change_of_spread():
    findings, _, _ = judged(DetectorLimit("d", "adwin", Adwin().build), sample(5, 800), sample(6, 400, spread=4.0), size=400)
    assert [f.feature for f in findings if f.over] == ["x"]


def test_a_detection_is_forgotten_after_a_window():
    limit = DetectorLimit("d", "adwin", Adwin().build)
    assert judged(limit, sample(5, 600), sample(6, 200, shift=2.0))[1]
    assert not judged(limit, sample(5, 600), sample(6, 200, shift=2.0), sample(7, 600, shift=2.0))[1]


@pytest.mark.parametrize("spec", DETECTORS, ids=lambda spec: spec.kind)
def test_a_detector_is_the_same_in_every_run_and_bounded(spec):
    def detections():
        detector = spec.build(3, 10)
        rng = np.random.default_rng(0)
        values = np.concatenate([rng.uniform(0, 1, 1500), rng.uniform(0.6, 1, 500)])
        return [row for row, value in enumerate(values) if detector.feed([float(value)])]

    assert detections() == detections()
    assert detections()[0] >= 1500


def test_a_broken_detector_is_unknown_and_never_silent():
    class Broken:
        def feed(self, values):
            raise ZeroDivisionError("inside")

    findings, breached, _ = judged(DetectorLimit("d", "broken", lambda seed, signals: Broken()), sample(5, 300))
    assert not breached
    assert all("ZeroDivisionError" in f.unknown and np.isnan(f.score) for f in findings)


@pytest.mark.parametrize("began", [0, 40, 100, 160])
def test_the_estimate_of_where_drift_began_is_near(began):
    before, after = sample(8, 200), sample(9, 200, shift=3.0)
    mixed = {name: before[name][:began] + after[name][began:] for name in before}
    findings, _, window = judged(EvidentlyLimit("l", "ks", 1e-3), mixed)
    assert abs(drift_began(window, REFERENCE, findings) - began) <= 8


# State

UNION = get_args(get_args(DetectorSpec)[0])
KEEN = {"adwin": Adwin(delta=0.2), "page_hinkley": PageHinkley(threshold=5.0), "kswin": Kswin(alpha=0.1)}
LIMITS = [
    *(EvidentlyLimit(f"e-{test}", test) for test in ("auto", *ALLOWED_KINDS)),
    *(DetectorLimit(f"d-{kind}", kind, spec.build, settings=spec.settings) for kind, spec in KEEN.items()),
]


def signal(rows):
    """Ranks that change their level every few hundred values."""
    rng = np.random.default_rng(4)
    return [float(rng.uniform(0.0, 1.0) if row // 300 % 2 == 0 else rng.uniform(0.7, 1.0)) for row in range(rows)]


def river_state(kind, fed=700):
    detector = KEEN[kind].build(3, 2)
    for value in signal(fed):
        detector.feed([value])
    return detector.state()


def crafted(pickled):
    return river_state("adwin").partition(b"\n")[0] + b"\n" + pickled


def test_every_detector_of_the_union_is_tried_here():
    assert {spec.model_fields["kind"].default for spec in UNION} == KEEN.keys()


@pytest.mark.parametrize("kind", KEEN)
def test_a_restored_detector_goes_on_bit_for_bit(kind):
    rows = 2400
    straight, restarted = KEEN[kind].build(3, 2), KEEN[kind].build(3, 2)
    cuts = set(random.Random(2).sample(range(rows), 25))
    detections = 0
    for row, value in enumerate(signal(rows)):
        if row in cuts:
            state = restarted.state()
            restarted = KEEN[kind].build(3, 2)
            restarted.restore(state)
            assert restarted.state() == state == straight.state()
        detected = straight.feed([value])
        assert restarted.feed([value]) == detected
        detections += len(detected)
    assert detections >= 4, "the stream has changes before and after restarts"
    assert restarted.state() == straight.state()


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_a_restored_judge_says_what_an_undisturbed_one_says(limit):
    window, straight, restarted = CountWindow(60, 20).build(REFERENCE.columns), limit.build(REFERENCE, 60), limit.build(REFERENCE, 60)
    breaches = 0
    for number in range(16):
        part = sample(number, 20, shift=3.0 * (number // 4 % 2))
        rows = as_rows(part)
        window.put(rows)
        anew = limit.build(REFERENCE, 60)
        assert anew.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(restarted.state()))) == ""
        restarted = anew
        for judge in (straight, restarted):
            judge.observe(rows)
        assert restarted.state() == straight.state()
        said = straight.judge(window)
        assert repr(restarted.judge(window)) == repr(said)
        breaches += said[1]
    assert breaches or limit.name in ("e-chisquare", "e-z")


def test_a_broken_detector_stays_broken_and_is_not_asked_for_its_memory():
    class Broken:
        def feed(self, values):
            raise ZeroDivisionError("inside")

    limit = DetectorLimit("d", "broken", lambda seed, signals: Broken())
    judge, anew = limit.build(REFERENCE, 60), limit.build(REFERENCE, 60)
    judge.observe(as_rows(sample(1, 20)))
    assert anew.restore(judge.state()) == ""
    assert anew.state() == judge.state()
    assert all("ZeroDivisionError" in broken for broken in anew.state()["broken"])


@pytest.mark.parametrize("changed", [{"broken": ["", ""]}, {"detected": [[]]}, {"detectors": [b""]}, {"rows": None}])
def test_a_memory_of_other_columns_is_refused(changed):
    limit = LIMITS[-1]
    state = limit.build(REFERENCE, 60).state()
    with pytest.raises(ValueError):
        limit.build(REFERENCE, 60).restore({**state, **changed})


class Attack:
    def __reduce__(self):
        return os.system, ("echo attacked",)


class Named:
    """A pickle of `module.name`, called with `arguments`."""

    def __init__(self, module, name, *arguments):
        self.pickled = b"".join(
            [
                b"\x80\x04",
                *(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)),
                b"\x93",
                pickle.dumps(arguments, 4)[2:-1] if arguments else b")",
                b"R.",
            ]
        )


ATTACKS = {
    "os.system": (pickle.dumps(Attack()), r"(posix|nt)\.system"),
    "eval": (Named("builtins", "eval", "1/0").pickled, r"builtins\.eval"),
    "import": (Named("builtins", "__import__", "os").pickled, r"builtins\.__import__"),
    "a path through an allowed class": (
        Named("river.drift.page_hinkley", "PageHinkley.__init__.__globals__").pickled,
        "PageHinkley.__init__",
    ),
    "an attribute of a text": (Named("builtins", "getattr", "x", "__class__").pickled, "'__class__' of a str"),
    "a class of another detector": (pickle.dumps(deque([1])), r"collections\.deque"),
    "no detector": (pickle.dumps({"a": 1}), "of a dict"),
    "nothing": (b"", "cannot be read"),
}


@pytest.mark.parametrize(("pickled", "says"), ATTACKS.values(), ids=ATTACKS)
def test_a_pickle_that_names_anything_else_is_refused_and_runs_nothing(pickled, says, capfd):
    for kind in ("adwin", "page_hinkley"):
        detector = KEEN[kind].build(3, 2)
        before = detector.state()
        with pytest.raises(SnapshotError, match=says):
            detector.restore(crafted(pickled))
        assert detector.state() == before
    assert "attacked" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["update", "_reset", "__class__", "__init__", "__reduce__", "_test_increase"])
def test_of_a_detectors_own_attributes_only_the_one_it_needs_may_be_named(name):
    whole = river_state("page_hinkley").partition(b"\n")[2]
    assert b"_test_both" in whole
    old, new = (b"\x8c" + bytes([len(text)]) + text.encode() for text in ("_test_both", name))
    # Without the frame's length, which the change makes wrong.
    changed = b"\x80\x05" + whole[11:].replace(old, new)
    with pytest.raises(SnapshotError, match=f"the attribute '{name}' of a PageHinkley"):
        KEEN["page_hinkley"].build(3, 2).restore(crafted(changed))
    KEEN["page_hinkley"].build(3, 2).restore(crafted(b"\x80\x05" + whole[11:]))


@pytest.mark.parametrize("kind", KEEN)
def test_the_memory_of_another_detector_version_or_size_is_refused(kind):
    others = [other for other in KEEN if other != kind]
    _, _, pickled = river_state(kind).partition(b"\n")
    foreign = r"names river|of a \w+, not of a"
    says = {river_state(other): foreign for other in others} | {b"0.1.0\n" + pickled: "by river 0.1.0", b"": "by river ,"}
    for wrong, match in (says | {crafted(pickled + b" " * MAX_STATE): f"at most {MAX_STATE}"}).items():
        with pytest.raises(SnapshotError, match=match):
            KEEN[kind].build(3, 2).restore(wrong)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from([*KEEN]), data=st.data())
def test_damaged_memory_is_a_snapshot_error_or_a_detector_that_at_worst_fails(kind, data):
    head, _, pickled = river_state(kind, 120).partition(b"\n")
    damaged = bytearray(pickled)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    detector = KEEN[kind].build(3, 2)
    try:
        detector.restore(head + b"\n" + bytes(damaged[:cut]))
        for value in signal(70):
            detector.feed([value])
    except Exception as error:
        assert type(error).__name__ != "PanicException"


def test_a_panic_inside_river_is_a_finding_and_no_end_of_the_process():
    limit = LIMITS[-3]
    state = limit.build(REFERENCE, 60).state()
    head, _, pickled = river_state("adwin").partition(b"\n")
    chosen = random.Random(1)
    rows = as_rows(sample(1, 60))
    for _ in range(500):
        damaged = bytearray(pickled)
        damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
        judge = limit.build(REFERENCE, 60)
        if judge.restore({**state, "detectors": [head + b"\n" + bytes(damaged)] * len(state["detectors"])}):
            continue
        judge.observe(rows)
        if any("river panicked" in broken for broken in judge.state()["broken"]):
            return
    pytest.fail("no damage made river panic")


# Fingerprints


def variants(spec):
    """The spec with each of its settings changed, one at a time."""
    for name, value in spec:
        if name != "kind":
            yield type(spec)(**{**spec.model_dump(), name: value / 2 if isinstance(value, float) else value + 1})


@pytest.mark.parametrize("kind", KEEN)
def test_every_setting_of_a_detector_counts_in_the_fingerprint(kind):
    spec = KEEN[kind]
    settings_of = {one.settings for one in (spec, *variants(spec))}
    assert len(settings_of) == len(type(spec).model_fields), "all but kind, and the spec itself"
    assert type(spec)(**spec.model_dump()).settings == spec.settings
    assert isinstance(spec, BaseModel)
    prints = {DetectorLimit("d", kind, spec.build, settings=text).fingerprint for text in settings_of}
    assert len(prints) == len(settings_of)


def test_every_field_of_a_limit_counts_in_the_fingerprint():
    evidently = [
        ("l",),
        ("m",),
        ("l", "ks"),
        ("l", "ks", 0.1),
        ("l", "ks", 0.1, 0.5),
        ("l", "ks", 0.1, 0.5, ("x",)),
        ("l", "ks", None, None, ("x",)),
    ]
    build = Adwin().build
    detectors = [
        ("l", "adwin", build),
        ("m", "adwin", build),
        ("l", "kswin", build),
        ("l", "adwin", build, ("x",)),
        ("l", "adwin", build, None, "s"),
    ]
    limits = [*(EvidentlyLimit(*fields) for fields in evidently), *(DetectorLimit(*fields) for fields in detectors)]
    assert len({limit.fingerprint for limit in limits}) == len(limits)
    assert EvidentlyLimit("l", "ks", 0.1).fingerprint == EvidentlyLimit("l", "ks", 0.1).fingerprint
    assert DetectorLimit(*detectors[0]).fingerprint == DetectorLimit("l", "adwin", Adwin().build).fingerprint, "whoever makes the detectors"


def test_what_is_over_without_any_change_of_rank_began_where_the_window_does():
    columns = {**sample(2, 200), "x": [float("nan")] * 200}
    _, _, window = judged(EvidentlyLimit("ks", "ks"), columns)
    over = [Finding("quality", "x", "missing", 1.0, 0.05, True)]
    assert drift_began(window, REFERENCE, over) == 0
