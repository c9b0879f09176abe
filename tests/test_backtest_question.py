"""Known drifts as people write them, injections, tried settings, and what is counted from them."""

import json
from itertools import product
from math import inf

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import SettingsError
from inference.versions import Feature, Schema
from streaming.assemble import monitor_spec
from streaming.backtest.inject import injected, read_injections
from streaming.backtest.question import Course, KnownDrift, read_known_drifts
from streaming.backtest.table_settings import table_settings
from streaming.backtest.tries import Figures, Setting, fragment, pareto, proposed, settings_tried
from streaming.cli import main
from streaming.core.reference import prepare
from streaming.core.window import Rows
from streaming.settings import ModelSettings
from streaming.table_replay import DEFAULT_SPEC

T0 = 1_790_000_000.0

# Known drifts


def test_known_drifts_are_read_from_csv_yaml_and_json_alike(tmp_path):
    entries = [
        {"name": "a", "model": "default/m", "from": 100, "until": 200},
        {"name": "b", "from": "2026-10-03T12:00:00Z", "until": "2026-10-04"},
        {"from": 5},
    ]
    (tmp_path / "known.json").write_text(json.dumps(entries))
    (tmp_path / "known.yaml").write_text(yaml.safe_dump(entries))
    (tmp_path / "known.csv").write_text("name,model,from,until\na,default/m,100,200\nb,,2026-10-03T12:00:00Z,2026-10-04\n,,5,\n")
    known = [
        KnownDrift("a", "default/m", 100.0, 200.0, False),
        KnownDrift("b", "", 1_791_028_800.0, 1_791_072_000.0, True),
        KnownDrift("drift 3", "", 5.0, inf, False),
    ]
    for name in ("known.json", "known.yaml", "known.csv"):
        assert read_known_drifts(tmp_path / name, ["default/m"]) == known, name
    (tmp_path / "dates.yaml").write_text("- {name: b, from: 2026-10-03T12:00:00Z, until: 2026-10-04}\n")
    assert read_known_drifts(tmp_path / "dates.yaml", ["default/m"]) == [known[1]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,from\na,soon\n", "known.csv:2: 'soon' is no row's number and no time"),
        ("name,from\na,0\n", "rows are counted from 1, not 0"),
        ("name,from,until\na,10,2026-10-03\n", "from and until are both rows, or both times"),
        ("name,from,until\na,10,9\n", "it ends (until 9) before it begins (from 10)"),
        ("name,model,from\na,default/n,1\n", "there is no model default/n; there is default/m"),
        ("name,begin\na,1\n", "unknown begin"),
        ("name,until\na,1\n", "'from' is missing"),
        ("name,from\na,1\na,2\n", "more than one known drift is named a"),
        ("name,from\n", "there is no known drift in it"),
    ],
)
def test_what_is_wrong_with_a_known_drift_is_told_with_its_place(tmp_path, text, says):
    (tmp_path / "known.csv").write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_known_drifts(tmp_path / "known.csv", ["default/m"])
    assert says in str(caught.value)


def test_where_there_are_several_models_a_known_drift_names_its_own(tmp_path):
    (tmp_path / "known.csv").write_text("name,from\na,1\n")
    with pytest.raises(SettingsError, match="name its model: one of default/m, default/n"):
        read_known_drifts(tmp_path / "known.csv", ["default/m", "default/n"])
    with pytest.raises(SettingsError, match=r"none\.csv: cannot be read"):
        read_known_drifts(tmp_path / "none.csv", ["default/m"])


DRIFTS = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20), st.booleans()), max_size=4)


@settings(max_examples=60, deadline=None)
@given(DRIFTS, st.lists(st.integers(0, 30), min_size=1, max_size=50), st.lists(st.integers(1, 50), max_size=4))
def test_the_course_counts_what_a_loop_over_the_rows_counts(told, steps, cuts):
    times = T0 + np.cumsum(steps).astype(float)
    drifts = [
        KnownDrift(str(place), "", T0 + 10.0 * first if timed else first, (T0 + 10.0 * first if timed else first) + length, timed)
        for place, (first, length, timed) in enumerate(told)
    ]
    course = Course(drifts)
    ends = sorted({*[cut for cut in cuts if cut < len(times)], len(times)})
    for start, stop in zip([0, *ends], ends, strict=False):
        course.passed(times[start:stop])
    inside = [[drift.holds(number, time) for number, time in enumerate(times, 1)] for drift in drifts]
    quiet = [not any(one[row] for one in inside) for row in range(len(times))]
    assert (course.rows, course.quiet_rows) == (len(times), sum(quiet))
    gaps = [0.0, *np.diff(times)]
    assert course.quiet_days * 86400 == pytest.approx(sum(gap for gap, one in zip(gaps, quiet, strict=True) if one), abs=1e-3)
    for place, (drift, rows) in enumerate(zip(drifts, inside, strict=True)):
        assert course.happened(place) == any(rows)
        if any(rows):
            row = rows.index(True)
            assert course.began(place) == (row + 1, drift.first if drift.timed else times[row])


def test_an_alarm_belongs_to_the_earliest_drift_not_found_yet_and_else_repeats_the_latest():
    course = Course([KnownDrift("long", "", 10, 90, False), KnownDrift("short", "", 20, 40, False)])
    course.passed(np.arange(100.0))
    assert course.drift_of(5, 0.0, []) is None
    assert course.drift_of(30, 0.0, []) == 0
    assert course.drift_of(30, 0.0, [0]) == 1
    assert course.drift_of(30, 0.0, [0, 1]) == 1
    assert course.drift_of(60, 0.0, [0, 1]) == 0
    assert course.drift_of(91, 0.0, []) is None


# Injections

SCHEMA = Schema((Feature("x", "numeric"), Feature("y", "numeric"), Feature("c", "categorical")), "numeric", "")
REFERENCE = prepare(
    "default/m",
    "1",
    SCHEMA,
    {"x": [10.0, 12.0, 14.0, 18.0], "y": [0.0, 1.0, 2.0, 3.0], "c": ["a", "a", "b", "b"], "prediction": [0.0, 1.0, 0.0, 1.0]},
)
COUNT = 4000


def rows(start=0, stop=COUNT):
    rng = np.random.default_rng(2)
    names = np.empty(COUNT, dtype=object)
    names[:] = rng.choice(["a", "b"], COUNT)
    cells = [rng.normal(12.0, 2.0, COUNT), rng.normal(size=COUNT), names, rng.normal(size=COUNT)]
    return Rows.of(REFERENCE.columns, cells, np.arange(COUNT), T0 + 60.0 * np.arange(COUNT)).part(start, stop)


def after(text, start=0, stop=COUNT):
    return injected(rows(start, stop), REFERENCE, read_injections([text], ["default/m"]), start)


def test_each_change_does_what_it_says_from_its_row_on():
    before, x = rows(), rows().cells[0]
    late = slice(999, None)
    assert np.allclose(after("x: shift 0.5sd from 1000").cells[0][late], x[late] + 0.5 * np.std([10, 12, 14, 18]))
    assert np.array_equal(after("x: shift 0.5sd from 1000").cells[0][:999], x[:999])
    assert np.allclose(after("x: shift -3 from 1000").cells[0][late], x[late] - 3.0)
    assert np.allclose(after("x: scale x1.3 from 1000").cells[0][late], 13.0 + 1.3 * (x[late] - 13.0))
    assert np.allclose(after("x: unit 1000 from 1000").cells[0][late], 1000.0 * x[late])
    ramp = after("x: ramp 2 over 100 from 1000").cells[0] - x
    assert (ramp[998], ramp[999], ramp[1048], ramp[1098], ramp[3999]) == pytest.approx((0.0, 0.02, 1.0, 2.0, 2.0))
    assert np.array_equal(after("x: shift 3 from 1000").codes[0], REFERENCE.columns[0].codes(after("x: shift 3 from 1000").cells[0]))
    assert all(np.array_equal(one, other) for one, other in zip(after("x: shift 3 from 1").cells[1:], before.cells[1:], strict=True))


def test_shares_are_kept_and_until_ends_them():
    empty = np.isnan(after("x: missing 10% from 1001 until 3000").cells[0])
    assert (empty[:1000].any(), empty[3000:].any()) == (False, False)
    assert 0.08 < empty[1000:3000].mean() < 0.12
    new = after("c: category 0.2 from 2001").cells[2]
    assert 0.17 < np.mean(new[2000:] == "injected") < 0.23
    assert not (new[:2000] == "injected").any()
    named = after("c: category 0.2 of b from 1").cells[2]
    assert set(named) == {"a", "b"}
    assert np.mean(named == "b") == pytest.approx(0.6, abs=0.03)
    assert [cell is None for cell in after("c: missing 1 from 3999").cells[2][-3:]] == [False, True, True]


def test_a_time_begins_it_as_a_row_does():
    by_time = after("x: ramp 2 over 1h from 2026-09-21T14:53:20Z")
    ramp = by_time.cells[0] - rows().cells[0]
    start = round((1_790_002_400.0 - T0) / 60.0)
    assert (ramp[start], ramp[start + 30], ramp[start + 60], ramp[-1]) == pytest.approx((0.0, 1.0, 2.0, 2.0))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, COUNT - 1), max_size=5), st.sampled_from(["x: missing 0.3 from 17", "c: category 0.3 from 18 until 3500"]))
def test_what_is_drawn_depends_on_the_row_alone(cuts, text):
    ends = sorted({*cuts, COUNT})
    pieces = [after(text, start, stop) for start, stop in zip([0, *ends], ends, strict=False)]
    assert np.array_equal(np.concatenate([piece.codes for piece in pieces], axis=1), after(text).codes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x shift 3 from 1", "write FEATURE: KIND"),
        ("x: shift 3", "say once from which row or time on"),
        ("x: shift much from 1", "write shift 0.5sd, or shift 3"),
        ("x: move 3 from 1", "no change is named 'move'"),
        ("x: missing 1.5 from 1", "a share is above 0 and at most 1, not 1.5"),
        ("x: unit -2 from 1", "a factor is above 0, not -2"),
        ("x: ramp 1 over 2h from 5", "begins at a time, and not at a row"),
        ("x: ramp 1 over 50 from 2026-10-01", "begins at a row, and not at a time"),
        ("x: ramp 1 over soon from 5", "'soon' is no duration"),
        ("x: shift 1 from soon", "'soon' is no row's number and no time"),
    ],
)
def test_what_is_wrong_with_an_injection_is_told(text, says):
    with pytest.raises(SettingsError) as caught:
        read_injections([text], ["default/m"])
    assert says in str(caught.value)


def test_an_injection_must_fit_the_reference():
    for text, says in [
        ("z: shift 1 from 1", "no feature 'z'; it has x, y, c"),
        ("c: shift 1 from 1", "is categorical"),
        ("x: category 0.1 from 1", "is numeric"),
    ]:
        with pytest.raises(SettingsError, match=says):
            read_injections([text], ["default/m"])[0].check(REFERENCE)


def test_several_injections_are_told_apart_and_each_is_of_one_model():
    found = read_injections(["default/m x: shift 1 from 1; default/n y: missing 0.1 from 2"], ["default/m", "default/n"])
    assert [(one.drift.model, one.feature, one.kind) for one in found] == [("default/m", "x", "shift"), ("default/n", "y", "missing")]
    with pytest.raises(SettingsError, match="name its model before the feature"):
        read_injections(["x: shift 1 from 1"], ["default/m", "default/n"])


# Tried settings

MODEL = {
    "window": {"size": 500, "slide": 50},
    "limits": [{"kind": "evidently", "test": "ks", "threshold": 0.001}, {"kind": "budget", "name": "wolf", "false_alarms": "1 per 30d"}],
    "governor": {"min_samples": 500},
}


def tried(text, model=None):
    return settings_tried(text, {"default/m": ModelSettings.model_validate(model or MODEL)})


def test_every_combination_is_tried_and_the_configuration_first():
    found = tried("window.size=500,1000; limit.false_alarms=1 per 7d, 1 per 30d; governor.confirm=1")
    assert [one.values for one in found] == [
        {},
        *(
            {"window.size": size, "limit.false_alarms": budget, "governor.confirm": 1}
            for size, budget in product((500, 1000), ("1 per 7d", "1 per 30d"))
        ),
    ]
    settings_ = found[3].models["default/m"]
    assert (settings_.window.size, settings_.limits[1].false_alarms.seconds, settings_.governor.confirm) == (1000, 604_800.0, 1)
    assert settings_.limits[0].threshold == 0.001
    assert found[0].models["default/m"] == ModelSettings.model_validate(MODEL)
    assert tried("limit.evidently ks.threshold=0.1")[1].models["default/m"].limits[0].threshold == 0.1
    named = {"windows": {"short": {"size": 200}, "long": {"size": 900}}, "limits": [{"kind": "evidently"}]}
    assert tried("windows.long.size=800", named)[1].models["default/m"].windows["long"].size == 800


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("window.size", "write PATH=VALUE,VALUE"),
        ("errors.size=100", "what can be tried begins with window., windows.NAME., governor. or limit."),
        ("window.size=1; window.size=2", "it stands there twice"),
        ("window.size=20", "slide must be at most size (20), not 50"),
        ("window.length2=20", "window"),
        ("limit.threshold=0.1", "there are the limits evidently ks, wolf; write limit.NAME.SETTING"),
        ("limit.wolf.false_alarms=seldom", "'seldom' is no budget"),
        ("windows.long.size=100", "no such window; there is only `window`"),
        ("governor.confirm=0", "greater than or equal to 1"),
        (
            "window.size=" + ",".join(map(str, range(100, 109))) + "; governor.min_samples=" + ",".join(map(str, range(8))),
            "9 x 8 are 72 combinations; at most 64",
        ),
    ],
)
def test_what_is_wrong_with_a_tried_setting_is_told(text, says):
    with pytest.raises(SettingsError) as caught:
        tried(text)
    assert says in str(caught.value)
    assert "--try" in str(caught.value)


def test_every_fragment_is_a_configuration_that_check_accepts(tmp_path, capsys):
    for number, one in enumerate(tried("window.size=1000; limit.false_alarms=1 per 7d; governor.of=5")):
        (tmp_path / "driftloop.yaml").write_text(fragment(one))
        assert main(["check", "--config", str(tmp_path / "driftloop.yaml")]) == 0, capsys.readouterr().err
        read = yaml.safe_load(fragment(one))["models"]["default/m"]
        assert ModelSettings.model_validate(read) == one.models["default/m"]
        assert monitor_spec(ModelSettings.model_validate(read)).governor == monitor_spec(one.models["default/m"]).governor
        assert read["window"]["size"] == (1000 if number else 500)


def test_a_table_without_a_configuration_is_judged_as_ever():
    name, default = table_settings(None)
    assert monitor_spec(default) == DEFAULT_SPEC
    assert "false_alarms: 1 per 100000 events" in fragment(settings_tried("", {name: default})[0])


FIGURES = st.builds(
    Figures,
    st.integers(0, 4),
    st.sampled_from([0.0, 90.0]),
    st.just(200_000),
    st.integers(0, 2),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
)


def worst(figures):
    """The median by sorting, in which what was missed is last."""
    delays = sorted([*figures.delays, *[inf] * figures.missed])
    return float(np.median(delays)) if delays and delays[len(delays) // 2] < inf else inf


@settings(max_examples=200, deadline=None)
@given(st.lists(FIGURES, min_size=1, max_size=6))
def test_the_front_and_the_proposal_are_those_of_a_comparison_of_all_with_all(all_figures):
    for place, on_front in enumerate(pareto(all_figures)):
        mine = (all_figures[place].false_alarms, worst(all_figures[place]))
        beaten = any(
            (one.false_alarms <= mine[0] and worst(one) <= mine[1]) and (one.false_alarms < mine[0] or worst(one) < mine[1])
            for one in all_figures
        )
        assert on_front == (all_figures[place].known > 0 and not beaten)
    best = proposed(all_figures)
    front = [one for one, on_front in zip(all_figures, pareto(all_figures), strict=True) if on_front]
    assert (best is None) == (not front)
    if best is not None:
        chosen = all_figures[best[0]]
        assert chosen in front
        fine = [one for one in front if one.false_alarms <= (3 if one.days else 2)]
        assert (chosen in fine) == bool(fine)
        assert chosen.missed == min(one.missed for one in fine or front) or not fine
        assert chosen.median_delay >= 0


def test_a_missed_drift_is_later_than_any_delay():
    assert Figures(0, 0.0, 100, 1, (5,)).median_delay == inf
    assert Figures(0, 0.0, 100, 1, (5, 7)).median_delay == 7
    assert Figures(2, 60.0, 50_000, 0, (5,)).per_30d == 1.0
    assert Figures(2, 60.0, 50_000, 0, (5,)).per_100k == 4.0
    assert Setting({}, {}).label == "as configured"
