"""The budget of false alarms holds, changes are found and named, and nothing depends on how the rows are cut or on a restart."""

import math
import warnings
from copy import deepcopy

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

from inference.errors import SettingsError
from inference.versions import Feature, Schema
from streaming.core.cusum.recursion import BLOCK
from streaming.core.governor import Governor
from streaming.core.limits import BudgetLimit, EvidentlyLimit
from streaming.core.monitor import Monitor, MonitorSpec
from streaming.core.reference import prepare
from streaming.core.window import CountWindow, Rows


def reference_of(kinds, columns):
    """A prepared reference; the last of the columns is the prediction."""
    names = [*columns]
    features = tuple(Feature(name, kind) for name, kind in zip(names[:-1], kinds, strict=False))
    sample = {**{name: columns[name] for name in names[:-1]}, "prediction": columns[names[-1]]}
    return prepare("default/m", "1", Schema(features, kinds[-1], "t"), sample)


def rows_of(reference, columns, first=0):
    cells = [column.array(values) for column, values in zip(reference.columns, columns.values(), strict=True)]
    places = np.arange(first, first + len(cells[0]))
    return Rows.of(reference.columns, cells, places, places / 10.0)


# The budget, and what is found within it


def test_the_promise_holds_on_a_model_whose_data_do_not_change():
    rng = np.random.default_rng(11)
    columns = {f"x{number}": rng.normal(size=3000) for number in range(9)} | {"p": rng.exponential(size=3000)}
    reference = reference_of(["numeric"] * 10, columns)
    judge = BudgetLimit("b", 2_000.0).build(reference, 100)
    quiet = {name: (rng.exponential if name == "p" else rng.normal)(size=60_000) for name in columns}
    alarms = len(judge.observe(rows_of(reference, quiet)))
    assert 1 <= alarms <= poisson.ppf(0.9995, 60_000 / 2_000), "never an alarm would be no budget kept but a limit too high"


KINDS = ["numeric", "numeric", "categorical", "categorical", "numeric"]


def draw(seed, rows):
    """Two features that depend on each other, categories of 60, 39 and 1 %, flags, and a prediction; 1 % of x is missing."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    return {
        "x": np.where(rng.random(rows) < 0.01, math.nan, x),
        "y": 0.8 * x + 0.6 * rng.normal(size=rows),
        "c": [*rng.choice(["a", "b", "rare"], rows, p=[0.6, 0.39, 0.01])],
        "flag": [*rng.choice(["no", "yes"], rows, p=[0.9, 0.1])],
        "p": rng.exponential(size=rows),
    }


REFERENCE = reference_of(KINDS, draw(1, 4000))


def shifted(columns, rng):
    columns["y"] = columns["y"] + 1.0


def fallen(columns, rng):
    columns["p"] = columns["p"] / 3.0


def wider(columns, rng):
    columns["p"] = np.exp(np.log(columns["p"]) * 1.8)


def without_values(columns, rng):
    columns["x"] = np.where(rng.random(len(columns["x"])) < 0.15, math.nan, columns["x"])


def first_missing(columns, rng):
    columns["c"] = [None if gone else name for name, gone in zip(columns["c"], rng.random(len(columns["c"])) < 0.08, strict=True)]


def new_category(columns, rng):
    columns["c"] = ["new" if new else name for name, new in zip(columns["c"], rng.random(len(columns["c"])) < 0.05, strict=True)]


def fewer_of_b(columns, rng):
    moving = rng.random(len(columns["c"])) < 0.6
    columns["c"] = ["a" if name == "b" and moved else name for name, moved in zip(columns["c"], moving, strict=True)]


def more_rare(columns, rng):
    columns["c"] = ["rare" if moved else name for name, moved in zip(columns["c"], rng.random(len(columns["c"])) < 0.08, strict=True)]


def unrelated(columns, rng):
    columns["y"] = rng.permutation(columns["y"])


def tied(columns, rng):
    columns["p"] = np.sort(columns["p"])[columns["y"].argsort().argsort()]


@pytest.fixture(scope="module")
def built():
    """A judge at the default budget; take a copy."""
    return BudgetLimit("b").build(REFERENCE, 1000)


@pytest.mark.parametrize(
    ("change", "feature", "signals", "within"),
    [
        (shifted, "y", {"level up"}, 80),
        (fallen, "prediction", {"level down"}, 80),
        (wider, "prediction", {"spread up", "level down", "level up"}, 300),
        (without_values, "x", {"missing up"}, 250),
        (first_missing, "c", {"missing up"}, 150),
        (new_category, "c", {"unseen up"}, 350),
        (fewer_of_b, "c", {"category 'b' down", "category 'a' up"}, 200),
        (more_rare, "c", {"rare up"}, 400),
        (unrelated, "x, y", {"pair down"}, 200),
        (tied, "y, prediction", {"pair up"}, 200),
    ],
)
def test_a_change_is_found_soon_and_told_by_feature_and_signal(built, change, feature, signals, within):
    delays = []
    for seed in (2, 3, 4):
        columns = draw(seed, 5000)
        changed = draw(seed + 100, 5000)
        change(changed, np.random.default_rng(seed))
        joined = {name: [*columns[name][:1000], *changed[name][:4000]] for name in columns}
        judge, window = deepcopy(built), CountWindow(1000, 100).build(REFERENCE.columns)
        rows = rows_of(REFERENCE, joined)
        for start in range(0, len(rows), 100):
            stretch = rows.part(start, start + 100)
            asked = judge.observe(stretch)
            if asked:
                window.put(stretch.part(0, asked[0]))
                break
            window.put(stretch)
        findings, breached = judge.judge(window)
        over = [finding for finding in findings if finding.over]
        assert breached
        # A change of one feature may show in its pairs at the same row.
        (named,) = [finding for finding in over if finding.feature == feature]
        assert len(over) == 1 or "," in feature
        assert (named.limit, named.test, named.threshold) == ("b", "cusum", 1.0)
        assert named.signal in signals
        assert named.score >= 1.0 > max(finding.score for finding in findings if not finding.over)
        delays.append(window.rows - 1000)
    assert min(delays) > 0, "nothing before the change"
    assert sorted(delays)[1] <= within


def test_the_findings_are_one_of_each_column_and_the_highest_pair():
    judge, window = BudgetLimit("b").build(REFERENCE, 50), CountWindow(50, 50).build(REFERENCE.columns)
    rows = rows_of(REFERENCE, draw(5, 50))
    assert judge.observe(rows) == []
    window.put(rows)
    findings, breached = judge.judge(window)
    assert not breached
    assert [finding.feature for finding in findings[:-1]] == ["x", "y", "c", "flag", "prediction"]
    assert findings[-1].feature in {"x, y", "x, prediction", "y, prediction"}
    assert findings[-1].signal in {"pair up", "pair down"}
    assert all(0.0 <= finding.score < 1.0 and not finding.over and finding.signal and not finding.unknown for finding in findings)


def test_only_the_columns_that_were_chosen_are_watched():
    judge = BudgetLimit("b", columns=("y", "flag")).build(REFERENCE, 50)
    window, columns = CountWindow(50, 50).build(REFERENCE.columns), draw(5, 50)
    shifted(columns, None)
    columns["x"] = np.full(50, 99.0)
    rows = rows_of(REFERENCE, columns)
    asked = judge.observe(rows)
    window.put(rows)
    findings, _ = judge.judge(window)
    assert asked
    assert [finding.feature for finding in findings] == ["y", "flag"]
    with pytest.raises(SettingsError, match="no such column z"):
        BudgetLimit("b", columns=("z",)).build(REFERENCE, 50)


def test_a_flag_that_is_seldom_up_and_a_copy_that_is_seldom_wrong_keep_the_budget_in_their_pairs():
    """Their products hang on a handful of the reference's rows."""

    def drawn(rng, rows):
        switch = (rng.random(rows) < 0.5).astype(float)
        return {
            "x": rng.normal(size=rows),
            "flag": (rng.random(rows) < 0.002).astype(float),
            "switch": switch,
            "copy": np.where(rng.random(rows) < 0.001, 1.0 - switch, switch),
            "p": np.where(rng.random(rows) < 0.003, rng.normal(size=rows), math.nan),
        }

    alarms = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        reference = reference_of(["numeric"] * 5, drawn(rng, 1000))
        alarms += len(BudgetLimit("b", 10_000.0).build(reference, 10).observe(rows_of(reference, drawn(rng, 10_000))))
    assert alarms <= poisson.ppf(0.9995, 4.0)


# Any cut, any restart


def small(seed=6, rows=150):
    rng = np.random.default_rng(seed)
    return {
        "x": [*rng.normal(size=rows)],
        "y": [*rng.integers(0, 4, rows).astype(float)],
        "c": [*rng.choice(["a", "b", "c"], rows)],
        "p": [*rng.normal(size=rows)],
    }


SMALL = reference_of(["numeric", "numeric", "categorical", "numeric"], small())
# So few events that alarms are many, also of several parts at one row, and of one part several times in a block.
MANY_ALARMS = BudgetLimit("b", 25.0)
LIVELY = BudgetLimit("b", None, 40.0)


def stream(rows, seed=7):
    """A stream with calm and lively stretches."""
    rng = np.random.default_rng(seed)
    columns = small(seed, rows)
    for start in range(0, rows, 60):
        place = slice(start, start + 60)
        shift = float(rng.choice([0.0, 0.0, 1.5, -3.0]))
        columns["x"][place] = [value + shift for value in columns["x"][place]]
        columns["p"][place] = [value + shift for value in columns["p"][place]]
        if shift:
            columns["c"][place] = [str(rng.choice(["a", "z", "b"])) if rng.random() < 0.7 else None for _ in columns["c"][place]]
    return columns


def outcome(limit, size, rows, cuts, restarts=False):
    """What a judge says of a stream in pieces: the rows at which it asked, each verdict at those and at the end, and its memory."""
    judge, window, told, done, asked_at = limit.build(SMALL, size), CountWindow(size, size).build(SMALL.columns), [], 0, []
    for stop in [*cuts, len(rows)]:
        piece = rows.part(done, stop)
        put = 0
        for asked in judge.observe(piece):
            for start in range(put, asked, size):
                window.put(piece.part(start, min(asked, start + size)))
            put = asked
            asked_at.append(window.rows)
            told.append(repr((window.rows, judge.judge(window))))
        for start in range(put, len(piece), size):
            window.put(piece.part(start, min(len(piece), start + size)))
        done = stop
        if restarts:
            anew = limit.build(SMALL, size)
            assert anew.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(judge.state()))) == ""
            assert anew.state() == judge.state()
            judge = anew
    judge.observe(rows.part(0, 0))
    return asked_at, told, repr(judge.judge(window)), judge.state()


@pytest.mark.parametrize("limit", [MANY_ALARMS, LIVELY], ids=["events", "seconds"])
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 20), size=st.sampled_from([2, 17, 60]), restarts=st.booleans(), cuts=st.sets(st.integers(1, 319), max_size=12))
def test_nothing_depends_on_how_rows_are_cut_or_on_a_restart(limit, seed, size, restarts, cuts):
    rows = rows_of(SMALL, stream(320, seed))
    whole = outcome(limit, size, rows, [])
    assert outcome(limit, size, rows, sorted(cuts), restarts) == whole
    assert whole[0]


def test_each_row_alone_is_judged_like_all_at_once():
    rows = rows_of(SMALL, stream(2 * BLOCK + 40))
    for limit in (MANY_ALARMS, LIVELY):
        whole = outcome(limit, 40, rows, [])
        assert len(whole[0]) > 5
        assert outcome(limit, 40, rows, range(1, len(rows))) == whole


class Slow:
    """The judge once more, row by row in plain Python, from the signals and limits that calibration gave."""

    def __init__(self, judge, size):
        self.judge, self.size = judge, size
        table = judge._statistics
        every = [*table.signals.singles, *table.signals.pairs]
        self.statistics = [
            (every[number], number, side, taken, limit)
            for number, side, taken, limit in zip(*map(list, (table.signal, table.side, table.allowance, table.limit)), strict=True)
        ]
        self.parts = [*dict.fromkeys(signal.columns for signal in every)]
        self.at = [0.0] * len(self.statistics)
        self.alarms = {}
        self.row = 0

    def told(self, number):
        signal, _, side, _, _ = self.statistics[number]
        return (f"category '{signal.category}'" if signal.kind == "category" else signal.kind) + (" up" if side > 0 else " down")

    def take(self, values):
        """Whether a verdict is asked for after this row, and which parts are over with which score and signal."""
        self.row += 1
        steps = [values[number] * side - taken for _, number, side, taken, _ in self.statistics]
        self.at = [max(0.0, at + step) for at, step in zip(self.at, steps, strict=True)]
        scores = [at / limit for at, (*_, limit) in zip(self.at, self.statistics, strict=True)]
        alarming = [number for number, (at, (*_, limit)) in enumerate(zip(self.at, self.statistics, strict=True)) if at >= limit]
        asks = False
        for part in self.parts:
            of_part = [number for number in alarming if self.statistics[number][0].columns == part]
            if of_part:
                asks = asks or not self.over(part)
                highest = max(of_part, key=lambda number: scores[number])
                self.alarms[part] = (self.row, scores[highest], highest)
        for number in alarming:
            self.at[number] = 0.0
        return asks, scores

    def over(self, part):
        return part in self.alarms and self.row - self.alarms[part][0] < self.size

    def findings(self, scores):
        """Of each column, of every pair that is over and of the highest pair: the feature, score, whether over, and signal."""
        names = [column.name for column in SMALL.columns]
        told, highest_pair = {}, max((part for part in self.parts if len(part) == 2), key=lambda part: self.highest(part, scores)[0])
        for part in self.parts:
            over = self.over(part)
            if len(part) == 1 or over or part == highest_pair:
                score, number = self.alarms[part][1:] if over else self.highest(part, scores)
                told[", ".join(names[column] for column in part)] = (float(score), over, self.told(number))
        return told

    def highest(self, part, scores):
        number = max((number for number, one in enumerate(self.statistics) if one[0].columns == part), key=lambda number: scores[number])
        return scores[number], number


@pytest.mark.parametrize("size", [2, 30, 400])
def test_the_judge_does_what_plain_python_does_row_by_row(size):
    rows = rows_of(SMALL, stream(600, seed=size))
    judge, window = MANY_ALARMS.build(SMALL, size), CountWindow(size, size).build(SMALL.columns)
    slow = Slow(judge, size)
    asked, blocks_of = [], 251
    values = judge._statistics.signals.of(rows.codes)
    several, again = 0, 0
    for start in range(0, 600, blocks_of):
        stretch = rows.part(start, min(600, start + blocks_of))
        asked = judge.observe(stretch)
        expected, put, alarms_before = [], 0, dict(slow.alarms)
        for place in range(1, len(stretch) + 1):
            asks, scores = slow.take(values[start + place - 1].tolist())
            again += sum(alarm != alarms_before.get(part) for part, alarm in slow.alarms.items()) - asks
            several += sum(alarm[0] == slow.row for alarm in slow.alarms.values()) > 1
            alarms_before = dict(slow.alarms)
            if not asks:
                continue
            expected.append(place)
            for first in range(put, place, size):
                window.put(stretch.part(first, min(place, first + size)))
            put = place
            findings, breached = judge.judge(window)
            assert breached
            assert {finding.feature: (finding.score, finding.over, finding.signal) for finding in findings} == slow.findings(scores)
        assert list(asked) == expected
        for first in range(put, len(stretch), size):
            window.put(stretch.part(first, min(len(stretch), first + size)))
    state = judge.state()
    assert np.frombuffer(state["statistics"], "<f8").tolist() == slow.at
    assert {slow.parts[int(part)]: (alarm[0], alarm[1], alarm[2]) for part, alarm in state["alarms"].items()} == slow.alarms
    assert state["rows"] == 600
    assert several, "the stream has rows at which several parts alarm"
    assert again, "and alarms that go on"


def test_an_alarm_counts_for_as_many_rows_as_a_window_has_and_a_later_one_asks_again():
    """x far up at one row, quiet for long, then again."""
    size = 20
    judge, window = BudgetLimit("b", 1e5, columns=("x",)).build(SMALL, size), CountWindow(size, 1).build(SMALL.columns)
    quiet = {"x": 0.0, "y": 1.0, "c": "a", "p": 0.0}

    def step(x):
        row = rows_of(SMALL, {**{name: [value] for name, value in quiet.items()}, "x": [x]}, window.rows)
        asked = judge.observe(row)
        window.put(row)
        return list(asked), judge.judge(window)[1]

    while not (told := step(9.0))[0]:
        assert told == ([], False)
    assert told == ([1], True)
    counted = [step(x) for x in (-1.3, 0.6, -0.6, 1.3, 0.0) * 5]
    assert counted[: size - 1] == [([], True)] * (size - 1)
    assert counted[size - 1 :] == [([], False)] * 6
    while not (told := step(9.0))[0]:
        assert told == ([], False)
    assert told == ([1], True), "asked for again"
    for _ in range(3 * size):
        asked, breached = step(9.0)
        assert (asked, breached) == ([], True), "one that goes on asks for no second verdict"


# Memory


def test_a_memory_that_does_not_fit_is_refused_and_changes_nothing():
    judge = MANY_ALARMS.build(SMALL, 30)
    judge.observe(rows_of(SMALL, stream(200)))
    state = judge.state()
    assert state["alarms"]
    (part, alarm) = next(iter(state["alarms"].items()))
    broken = [
        {},
        {**state, "statistics": state["statistics"][:-8]},
        {**state, "statistics": state["statistics"][:-1]},
        {**state, "statistics": state["statistics"] + b"\0" * 8},
        {**state, "statistics": None},
        {**state, "statistics": np.full(len(state["statistics"]) // 8, math.nan).tobytes()},
        {**state, "statistics": np.full(len(state["statistics"]) // 8, -1.0).tobytes()},
        {**state, "statistics": np.full(len(state["statistics"]) // 8, math.inf).tobytes()},
        {**state, "rows": "many"},
        {**state, "rows": -1},
        {**state, "alarms": {"x": alarm}},
        {**state, "alarms": {"-1": alarm}},
        {**state, "alarms": {"99": alarm}},
        {**state, "alarms": {part: alarm[:2]}},
        {**state, "alarms": {part: [alarm[0], alarm[1], 10_000]}},
        {**state, "alarms": {part: [alarm[0], alarm[1], -1]}},
        {**state, "events": 1e4},
        {key: value for key, value in state.items() if key != "alarms"},
        BudgetLimit("b", 25.0, columns=("x", "y")).build(SMALL, 30).state(),
        EvidentlyLimit("e").build(SMALL, 30).state(),
    ]
    for wrong in broken:
        anew = MANY_ALARMS.build(SMALL, 30)
        before = anew.state()
        with pytest.raises(ValueError):
            anew.restore(wrong)
        assert anew.state() == before, wrong
    anew = MANY_ALARMS.build(SMALL, 30)
    assert anew.restore(state) == ""
    assert anew.state() == state


def test_every_field_of_the_limit_counts_in_the_fingerprint():
    limits = [BudgetLimit("b"), BudgetLimit("c"), BudgetLimit("b", 10.0), BudgetLimit("b", None, 10.0), BudgetLimit("b", columns=("x",))]
    assert len({limit.fingerprint for limit in limits}) == len(limits)
    assert BudgetLimit("b", None, 20.0).fingerprint != limits[3].fingerprint
    assert BudgetLimit("b", 10.0).fingerprint == limits[2].fingerprint


@pytest.mark.parametrize(("events", "seconds"), [(None, None), (10.0, 10.0)])
def test_a_budget_is_so_many_events_or_so_many_seconds(events, seconds):
    with pytest.raises(ValueError, match="one of the two"):
        BudgetLimit("b", events, seconds)


# Any reference

CELLS = {
    "numeric": st.one_of(
        st.integers(-2, 2).map(float),
        st.floats(-1e100, 1e100),
        st.sampled_from([None, math.nan, math.inf, -math.inf, 5e-324]),
    ),
    "categorical": st.sampled_from([None, "", "a", "b", "c"]) | st.text(max_size=2),
}


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_reference_gives_finite_limits_without_a_warning(data):
    kinds = data.draw(st.lists(st.sampled_from([*CELLS]), min_size=2, max_size=4))
    rows, times = data.draw(st.integers(1, 15)), data.draw(st.sampled_from([1, 1, 5, 40]))
    columns = {}
    for number, kind in enumerate(kinds):
        pool = data.draw(st.lists(CELLS[kind], min_size=1, max_size=5))
        columns[f"x{number}"] = times * data.draw(st.lists(st.sampled_from(pool), min_size=rows, max_size=rows))
    reference = reference_of(kinds, columns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge = BudgetLimit("b").build(reference, 10)
        judge.observe(rows_of(reference, columns))
    table = judge._statistics
    assert np.isfinite(table.limit).all() and np.isfinite(table.allowance).all()
    assert (table.limit > 0.0).all()
    assert np.isfinite(np.frombuffer(judge.state()["statistics"], "<f8")).all()


@pytest.mark.parametrize("kind", ["numeric", "categorical"])
def test_a_column_that_never_had_a_value_is_quiet_until_it_has_one(kind):
    reference = reference_of([kind, "numeric"], {"x": [None] * 400, "p": [None] * 400})
    judge, window = BudgetLimit("b").build(reference, 100), CountWindow(100, 100).build(reference.columns)
    assert judge.observe(rows_of(reference, {"x": [None] * 5000, "p": [None] * 5000})) == []
    rows = rows_of(reference, {"x": [1.0 if kind == "numeric" else "a"] * 60, "p": [None] * 60})
    assert judge.observe(rows)[0] < 30
    judge.restore(BudgetLimit("b").build(reference, 100).state())
    asked = judge.observe(rows)[0]
    window.put(rows.part(0, asked))
    findings, _ = judge.judge(window)
    assert [(finding.feature, finding.signal) for finding in findings if finding.over] == [("x", "missing down")]


@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_a_reference_of_few_rows_alarms_at_nothing_of_its_own(rows):
    columns = small(8, rows)
    reference = reference_of(["numeric", "numeric", "categorical", "numeric"], columns)
    judge = BudgetLimit("b").build(reference, 10)
    assert judge.observe(rows_of(reference, {name: cells * (200 // rows) for name, cells in columns.items()})) == []


def test_two_hundred_columns_are_watched_each_for_itself():
    rng, columns = np.random.default_rng(9), 200
    cells = {f"x{number}": rng.normal(size=100) for number in range(columns - 1)} | {"p": np.full(100, math.nan)}
    reference = reference_of(["numeric"] * columns, cells)
    judge = BudgetLimit("b").build(reference, 40)
    moved = {**cells, "x150": cells["x150"] + 4.0}
    rows, window = rows_of(reference, moved), CountWindow(40, 40).build(reference.columns)
    asked = judge.observe(rows.part(0, 40))
    window.put(rows.part(0, 40))
    findings, _ = judge.judge(window)
    assert asked
    assert [finding.feature for finding in findings if finding.over] == ["x150"]


# The monitor


def verdicts(spec, reference, rows, cuts):
    monitor, told, done = Monitor(spec, reference, 3), [], 0
    for stop in [*cuts, len(rows)]:
        told += monitor.take(rows.part(done, stop))
        done = stop
    return told, monitor


SPEC = MonitorSpec(CountWindow(50, 20), (EvidentlyLimit("e", "ks", columns=("x",)), MANY_ALARMS), Governor())


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 20), cuts=st.sets(st.integers(1, 299), max_size=12))
def test_the_same_verdicts_fall_due_whatever_the_cuts(seed, cuts):
    rows = rows_of(SMALL, stream(300, seed))
    whole, straight = verdicts(SPEC, SMALL, rows, [])
    cut, other = verdicts(SPEC, SMALL, rows, sorted(cuts))
    assert repr(cut) == repr(whole)
    assert len({verdict.id for verdict in whole}) == len(whole)
    assert other.state() == straight.state()


def test_a_verdict_falls_due_at_each_slide_and_at_each_row_where_the_limit_asks():
    rows = rows_of(SMALL, stream(500))
    told, monitor = verdicts(SPEC, SMALL, rows, [137, 301])
    asked = set(outcome(MANY_ALARMS, 50, rows, [])[0])
    slides = {*range(50, 501, 20)}
    assert {verdict.predictions for verdict in told} == asked | slides
    assert [verdict.number for verdict in told] == [*range(1, len(told) + 1)]
    assert min(asked) < 50, "before the window is full too"
    assert asked - slides
    for verdict in told:
        limits = {finding.limit for finding in verdict.findings}
        newest, oldest = verdict.predictions - 1, max(0, verdict.predictions - 50)
        span = verdict.window
        assert (span.partition, span.first_offset, span.last_offset) == (3, oldest, newest)
        assert (span.first_time, span.last_time) == (oldest / 10.0, newest / 10.0)
        assert limits == ({"e", "b"} if verdict.predictions in slides else {"b"}), "who did not ask is not judged between slides"
        # Each limit's findings are those of just this row.
        alone, window = MANY_ALARMS.build(SMALL, 50), CountWindow(50, 20).build(SMALL.columns)
        if verdict.predictions in slides:
            window.put(rows.part(oldest, newest + 1))
            ks = EvidentlyLimit("e", "ks", columns=("x",)).build(SMALL, 50).judge(window)[0]
            assert [finding for finding in verdict.findings if finding.limit == "e"] == ks
        else:
            assert verdict.breached == ("b",)
        if verdict is told[len(told) // 2]:
            alone.observe(rows.part(0, newest + 1))
            window.rows = newest + 1
            assert [finding for finding in verdict.findings if finding.limit == "b"] == alone.judge(window)[0]
    assert monitor.last == told[-1]
    assert monitor.predictions == 500


@pytest.mark.parametrize("change", [shifted, wider, without_values, unrelated, tied, fewer_of_b])
def test_the_estimate_of_where_drift_began_is_near_whatever_the_signal(change):
    columns, changed = draw(2, 1600), draw(102, 1600)
    change(changed, np.random.default_rng(2))
    joined = {name: [*columns[name][:800], *changed[name][800:]] for name in columns}
    monitor = Monitor(MonitorSpec(CountWindow(700, 100), (BudgetLimit("b"),), Governor()), REFERENCE, 0)
    verdict = next(verdict for verdict in monitor.take(rows_of(REFERENCE, joined)) if verdict.drift)
    began = monitor.drift_began(verdict)
    assert abs(began.first_offset - 800) <= 40
    assert began.last_offset == verdict.window.last_offset
