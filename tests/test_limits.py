"""Limits: quiet on what the reference knows, over on what it does not, and clear about what they cannot judge."""

import numpy as np
import pytest

from inference.errors import SettingsError
from inference.versions import Feature, Schema
from streaming.core.limits import DetectorLimit, EvidentlyLimit, drift_began
from streaming.core.reference import prepare
from streaming.core.window import CountWindow
from streaming.detectors import Adwin, Kswin, PageHinkley

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


def judged(limit, *stretches, size=200):
    """Feed the stretches in order through a window of `size` and judge at the end."""
    window, judge = CountWindow(size, size).build(REFERENCE.columns), limit.build(REFERENCE, size)
    for columns in stretches:
        arrays = [column.array(columns[column.name]) for column in REFERENCE.columns]
        rows = len(arrays[0])
        for part, _ in window.extend(arrays, np.arange(rows), np.zeros(rows)):
            judge.observe([cells[part] for cells in arrays])
    return *judge.judge(window), window


def test_ranks_are_the_middle_of_each_values_share_of_the_reference():
    small = prepare("default/m", "1", SCHEMA, {"x": [1, 2, 2, 4], "y": [0.0] * 4, "c": ["b", "a", "b", "c"], "prediction": ["1"] * 4})
    number, _, name, _ = small.columns
    assert number.ranks(number.array([0.0, 1.0, 2.0, 3.0, 9.0, None, float("inf")])).tolist()[:5] == [0.0, 0.125, 0.5, 0.75, 1.0]
    assert np.isnan(number.ranks(number.array([None]))[0])
    # Most frequent first, ties by name: b has half, then a and c a quarter each.
    assert name.ranks(name.array(["b", "a", "c", "never seen"])).tolist() == [0.25, 0.625, 0.875, 1.0]
    assert np.isnan(name.ranks(name.array([None]))[0])


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
        return [row for row, value in enumerate(values) if detector.update(float(value))]

    assert detections() == detections()
    assert detections()[0] >= 1500


def test_a_broken_detector_is_unknown_and_never_silent():
    class Broken:
        def update(self, value):
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
