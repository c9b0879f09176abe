"""Benchmarks: what counts as a trigger, what the streams hold, and that the printed table says what the JSON says."""

import json
import subprocess
import sys

import numpy as np
import pytest

from inference.errors import SettingsError
from streaming.bench import detection, speed
from streaming.bench.policies import GROUPS
from streaming.bench.streams import CHANGED, QUIET, drawn, part, reference_of, rows_of
from streaming.cli import main
from streaming.core.limits import BudgetLimit

BY_NAME = {stream.name: stream for stream in (*QUIET, *CHANGED)}


def change_of(name):
    """The reference's rows, and the stream's before and after its change, of a stream that changes."""
    stream = BY_NAME[name]
    columns, rng = drawn(name, stream.law, stream.reference + 6_000, 3)
    before = part(columns, stream.reference, stream.reference + 3_000)
    after = part(columns, stream.reference + 3_000, stream.reference + 6_000)
    unchanged = part(after, 0, 3_000)
    stream.change(rng, after)
    return before, unchanged, after


def without_seconds(result):
    return {name: value for name, value in result.items() if name not in ("seconds", "machine")}


def line_of(text, name):
    return next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name).split()


# What counts


def test_triggers_within_a_thousand_events_of_one_that_counts_do_not():
    assert detection.counted([]) == 0
    assert detection.counted([5, 6, 1004]) == 1
    assert detection.counted([5, 6, 1005]) == 2
    # Silence runs from the trigger that counted, not from those it swallowed.
    assert detection.counted([100, 900, 1150, 1900, 2150]) == 3


def outcome(stream, policy="driftloop", seed=1, **figures):
    return detection.Outcome(detection.Task(stream, policy, seed, 1000), policy, **figures)


def test_what_was_not_found_counts_as_later_than_any_delay():
    stream = CHANGED[0]
    found = [outcome(stream.name, false=0, events=2000, delay=delay) for delay in (10, 20, None)]
    figures = detection._of_change(stream, found, {})["policies"]["driftloop"]
    assert (figures["median_delay"], figures["found"], figures["share_found"], figures["reached"]) == (20, 2, 0.667, False)
    figures = detection._of_change(stream, [*found, outcome(stream.name, false=0, events=2000)], {})["policies"]["driftloop"]
    assert figures["median_delay"] is None
    figures = detection._of_change(stream, found[:2], {})["policies"]["driftloop"]
    assert figures["reached"]


def test_a_delay_is_marked_where_its_policy_cries_wolf_on_the_quiet_stream():
    stream = CHANGED[0]
    own = [outcome(stream.name, false=0, events=2000, delay=10)]
    assert detection._of_change(stream, own, {(stream.quiet, "driftloop"): 10.0})["policies"]["driftloop"]["cries_wolf"]
    assert not detection._of_change(stream, own, {(stream.quiet, "driftloop"): 9.9})["policies"]["driftloop"]["cries_wolf"]
    assert detection._of_change(stream, own, {})["policies"]["driftloop"]["cries_wolf"] is None


@pytest.mark.parametrize(("false", "reached"), [(0, True), (5, True), (6, True), (7, False), (30, False)])
def test_false_triggers_are_judged_as_a_poisson_count(false, reached):
    """Three are allowed in 300,000 events; 6 or more come by chance in 8 % of such runs, 7 or more in 3 %."""
    figures = detection._of_quiet(QUIET[0], [outcome(QUIET[0].name, false=false, events=300_000)])["policies"]["driftloop"]
    assert (figures["reached"], figures["per_100k"]) == (reached, round(false / 3, 3))


# Streams


@pytest.mark.parametrize("stream", [*QUIET, *CHANGED], ids=lambda stream: stream.name)
def test_a_stream_is_the_same_for_a_seed_and_another_for_another(stream):
    first, again, other = (drawn(stream.name, stream.law, 300, seed)[0] for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name], equal_nan=first[name].dtype != object) for name in first)
    assert not any(np.array_equal(first[name], other[name], equal_nan=first[name].dtype != object) for name in first)


@pytest.mark.parametrize("name", [stream.name for stream in CHANGED])
def test_only_what_should_change_does(name):
    before, unchanged, after = change_of(name)
    changed = {column for column in after if not np.array_equal(unchanged[column], after[column], equal_nan=after[column].dtype != object)}
    assert len(changed) == (5 if "in 5 of 20" in name else 1)
    assert before.keys() == after.keys()
    assert BY_NAME[name].quiet in BY_NAME


def test_changes_are_as_large_as_they_say():
    def means(name, column="x3"):
        before, _, after = change_of(name)
        return np.nanmean(after[column]) - np.nanmean(before[column])

    assert means("0.5 sigma in 1 of 20") == pytest.approx(0.5, abs=0.1)
    assert means("1.5 sd in AR(1) rho 0.9") == pytest.approx(1.5, abs=0.5)
    before, _, after = change_of("spread x1.3 in 5 of 20")
    assert after["x4"].std() / before["x4"].std() == pytest.approx(1.3, abs=0.07)
    before, _, after = change_of("missing 1 to 10 %")
    assert (np.isnan(before["x3"]).mean(), np.isnan(after["x3"]).mean()) == pytest.approx((0.01, 0.1), abs=0.02)
    before, _, after = change_of("new category at 1 %")
    assert (after["letter"] == "never seen").mean() == pytest.approx(0.01, abs=0.006)
    assert "never seen" not in before["letter"]
    before, _, after = change_of("correlation 0 to 0.8")
    assert np.corrcoef(after["x2"], after["x3"])[0, 1] == pytest.approx(0.8, abs=0.03)
    assert abs(np.corrcoef(before["x2"], before["x3"])[0, 1]) < 0.06
    assert after["x3"].std() == pytest.approx(1.0, abs=0.05)
    before, _, after = change_of("1 sigma behind 1e6 outliers")
    assert set(before["x3"][before["x3"] > 1e5]) == set(after["x3"][after["x3"] > 1e5]) == {1e6}
    _, unchanged, after = change_of("ramp to 0.5 over 10,000 in 5 of 20")
    assert (after["x0"] - unchanged["x0"])[[0, 1000, 2000]] == pytest.approx([0.0, 0.05, 0.1])


def test_dependent_streams_depend_as_they_say():
    for name, rho in (("AR(1) rho 0.5, reference 20,000", 0.5), ("AR(1) rho 0.9, reference 20,000", 0.9)):
        cells = drawn(name, BY_NAME[name].law, 20_000, 1)[0]["x7"]
        assert np.corrcoef(cells[1:], cells[:-1])[0, 1] == pytest.approx(rho, abs=0.03)
        assert cells.std() == pytest.approx(1.0, abs=0.1)
    cells = drawn("periodic, reference 10,000", BY_NAME["periodic, reference 10,000"].law, 20_000, 1)[0]["x7"]
    assert np.corrcoef(cells[1000:], cells[:-1000])[0, 1] == pytest.approx(1 / 3, abs=0.03)
    assert np.corrcoef(cells[500:], cells[:-500])[0, 1] == pytest.approx(-1 / 3, abs=0.03)


# Policies


def test_the_default_policy_tells_every_alarm_and_not_only_the_first_of_an_incident():
    columns, _ = drawn("x", BY_NAME["1 sigma in 1 of 20"].law, 2_000, 1)
    few = {column: columns[column] for column in ("x0", "x3")}
    reference = reference_of(part(few, 0, 1_000))
    later = part(few, 1_000, 2_000)
    later["x3"] += 3.0
    rows = rows_of(reference, later)
    alarms = GROUPS["driftloop"].watcher(reference).take(rows)["driftloop"]
    asked = BudgetLimit("budget").build(reference, 1_000).observe(rows)
    assert len(alarms) > 50 > 10 > len(asked) > 0
    assert set(asked) <= set(alarms)


def test_the_preset_needs_half_of_the_columns_and_the_default_one():
    columns, _ = drawn("x", BY_NAME["1 sigma in 1 of 20"].law, 6_500, 1)
    reference = reference_of(part(columns, 0, 5_000))
    for shifted, found in ((1, (True, False)), (9, (True, False)), (10, (True, True))):
        later = part(columns, 5_000, 6_500)
        for number in range(shifted):
            later[f"x{number}"] += 1.0
        # Windows without noise of their own: the other columns stay as the reference has them.
        for number in range(shifted, 20):
            later[f"x{number}"] = columns[f"x{number}"][:1_500]
        triggers = GROUPS["evidently"].watcher(reference).take(rows_of(reference, later))
        assert (bool(triggers["evidently"]), bool(triggers["preset"])) == found
        assert all(row % 100 == 0 and row >= 1_000 for rows in triggers.values() for row in rows)


@pytest.mark.parametrize("name", ["adwin", "kswin"])
def test_a_detector_alone_sees_a_shift_and_says_where(name):
    columns, _ = drawn("x", BY_NAME["1 sigma in 1 of 20"].law, 1_500, 1)
    few = {column: columns[column] for column in ("x0", "x3")}
    reference = reference_of(part(few, 0, 1_000))
    later = part(few, 1_000, 1_500)
    later["x3"][320:] += 4.0
    triggers = GROUPS[name].watcher(reference).take(rows_of(reference, later))[name]
    assert any(320 < row <= 320 + 64 for row in triggers)


# Results


def test_detection_prints_what_its_json_says_and_the_same_for_the_same_seeds():
    first, again = (detection.run(2, only="0.5 sigma in 1 of", policies=["driftloop", "evidently"], events=500) for _ in range(2))
    assert without_seconds(first) == without_seconds(again)
    assert [one["stream"] for one in first["changes"]] == [CHANGED[1].name]
    assert first["quiet"] == []
    text = detection.table(first)
    for one in first["changes"]:
        figures = one["policies"]["driftloop"]
        assert figures["found"] == figures["seeds"] == 2
        assert figures["median_delay"] == sum(figures["delays"]) / 2
        target, own, default, preset = line_of(text, one["stream"])[1:]
        assert (target, preset) == (str(one["within"]), "never")
        assert own.rstrip("!") == f"{figures['median_delay']:,.0f}"
        assert own.endswith("!") is not figures["reached"]
        assert default == f"{one['policies']['evidently']['median_delay']:,.0f}"


def test_quiet_streams_are_counted_and_processes_change_nothing():
    first, apart = (detection.run(1, only="mixed types, reference 1,000", policies=["evidently"], events=4_000, workers=n) for n in (1, 2))
    assert without_seconds(first) == without_seconds(apart)
    figures = first["quiet"][0]["policies"]["evidently"]
    # Its default on a dozen columns of any kind fires all the time.
    assert figures["false"] >= 3
    assert figures["per_100k"] == figures["false"] * 25
    assert line_of(detection.table(first), first["quiet"][0]["stream"])[2] == f"{figures['per_100k']:.1f}"


def test_a_slow_policy_gets_less_and_the_table_says_so():
    result = {"seeds": 5, "events": 100_000, "policies": {"kswin": "slow"}, "quiet": [], "changes": [], "seconds": 1.0}
    text = detection.table({**result, "machine": {"processor": "p", "cores": 1, "load": 1.0, "system": "s", "python": "3"}})
    assert "5 seeds of 100,000 quiet events; kswin: 1 of 1,000" in text


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"only": "no such"}, "no stream has 'no such' in its name"),
        ({"policies": ["evidentially"]}, "no policy 'evidentially'; there are driftloop, evidently, adwin, kswin"),
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"events": 0}, "events must be at least 1, not 0"),
        ({"workers": 0}, "workers must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_run_is_refused(wrong, told):
    with pytest.raises(SettingsError, match=told):
        detection.run(**wrong)


def test_speed_prints_what_its_json_says():
    case = speed.Case("2 features", 2, 100, 1_000, 1)
    result = speed.run(cases=[case], rounds=1, evidently=False)
    figures = result["cases"][0]
    assert figures["columns"] == 3
    assert figures["reached"]
    assert figures["window_ms"] == pytest.approx(1e5 / figures["events_per_second"], rel=1e-2)
    own = line_of(speed.table(result), case.name)
    assert own[2:4] == [f"{figures['events_per_second']:,}", f"{figures['events_per_second_from_python_rows']:,}"]
    assert (figures["evidently_report_ms"], figures["times_report"]) == (None, None)
    with pytest.raises(SettingsError, match="no case has 'no such' in its name; there are: 20 features, slide 100"):
        speed.run(only="no such")
    with pytest.raises(SettingsError, match="rounds must be at least 1, not 0"):
        speed.run(rounds=0)


def test_a_target_that_is_missed_is_marked():
    result = speed.run(cases=[speed.Case("2 features", 2, 100, 1_000, 10**9)], rounds=1, evidently=False)
    assert not result["cases"][0]["reached"]
    assert line_of(speed.table(result), "2 features")[2] == f"{result['cases'][0]['events_per_second']:,}!"


@pytest.mark.slow
def test_speed_stands_next_to_evidently_in_the_same_run():
    pytest.importorskip("evidently", reason="what is compared with, evidently, is not installed (extra `report`)")
    result = speed.run(cases=[speed.Case("2 features", 2, 100, 1_000, 1, 2.0)], rounds=1)
    figures = result["cases"][0]
    assert figures["evidently_report_ms"] > figures["evidently_functions_ms"] > figures["window_ms"]
    assert figures["times_report"] == pytest.approx(figures["evidently_report_ms"] / figures["window_ms"], rel=0.05, abs=1)
    assert figures["times_reached"]


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, streaming.bench; sys.exit(bool({'numpy', 'scipy', 'pandas', 'river', 'evidently'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_prints_one_table_or_one_json_object(capsys):
    command = ["bench", "detection", "--seeds", "1", "--events", "3000", "--only", "1 sigma in", "--policy", "driftloop", "--workers", "1"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    assert "driftloop" in capsys.readouterr().out
    assert told
