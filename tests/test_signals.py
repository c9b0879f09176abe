"""Codes and signals equal what the docstring's table says of each value, told again in plain Python."""

import math
from statistics import NormalDist, fmean, pstdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.core.cusum import signals as cusum_signals
from streaming.core.cusum.recursion import accumulate, blocks
from streaming.core.cusum.signals import MOST_PAIRED, Signals
from streaming.core.reference import prepare

NAN, INF = math.nan, math.inf


def reference_of(**columns):
    """A prepared reference; the last of the columns is the prediction, and a column with any text in it is categorical."""
    kinds = {name: "categorical" if any(isinstance(cell, str) for cell in cells) else "numeric" for name, cells in columns.items()}
    *features, last = columns
    schema = Schema(tuple(Feature(name, kinds[name]) for name in features), kinds[last], "t")
    return prepare("default/m", "1", schema, {**{name: columns[name] for name in features}, "prediction": columns[last]})


def column_of(cells, kind="numeric"):
    schema = Schema((Feature("x", kind),), "numeric", "t")
    return prepare("default/m", "1", schema, {"x": cells, "prediction": [0.0] * len(cells)}).columns[0]


def codes_of(columns, *cells):
    return np.array([column.codes(column.array(values)) for column, values in zip(columns, cells, strict=True)], dtype=np.int32)


# Codes


def number_code(reference, value):
    """Odd for a value of the reference, even for one between two of them, the largest for none."""
    different = sorted({float(known) for known in reference if known is not None and math.isfinite(known)})
    if value is None or math.isnan(value):
        return 2 * len(different) + 1
    return 2 * sum(known < value for known in different) + (value in different)


NUMBERS = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-10.0, 10.0),
    st.sampled_from([None, NAN, INF, -INF, 1e300, -1e300, 5e-324, -0.0]),
)


@settings(deadline=None)
@given(reference=st.lists(NUMBERS, min_size=1, max_size=20), window=st.lists(NUMBERS, max_size=20))
def test_the_code_of_a_number_tells_between_which_values_of_the_reference_it_stands(reference, window):
    column = column_of(reference)
    assert column.codes(column.array(window)).tolist() == [number_code(reference, value) for value in window]
    assert column.codes(column.array(window)).dtype == np.int32


def test_infinities_stand_at_the_ends_and_equal_no_value():
    column = column_of([2.0, 1.0, 2.0, INF, -INF, NAN])
    assert column.codes(column.array([-INF, 0.0, 1.0, 1.5, 2.0, 3.0, INF, NAN, None])).tolist() == [0, 0, 1, 2, 3, 4, 4, 5, 5]
    empty = column_of([NAN, None, INF])
    assert empty.codes(empty.array([1.0, -INF, NAN])).tolist() == [0, 0, 1]


@settings(deadline=None)
@given(
    reference=st.lists(st.sampled_from([None, "a", "b", "c", ""]), min_size=1, max_size=20),
    window=st.lists(st.sampled_from([None, "a", "b", "c", "", "z"]), max_size=20),
)
def test_the_code_of_a_category_is_its_place_by_frequency(reference, window):
    column = column_of(reference, "categorical")
    known = [cell for cell in reference if cell is not None]
    ordered = sorted(set(known), key=lambda name: (-known.count(name), name))
    numbers = {None: len(ordered) + 1, **{name: number for number, name in enumerate(ordered)}}
    assert column.codes(column.array(window)).tolist() == [numbers.get(cell, len(ordered)) for cell in window]


def test_a_reference_keeps_its_rows_as_codes_in_their_order():
    reference = reference_of(x=[3.0, NAN, 1.0, 3.0], p=["b", "a", None, "b"])
    assert reference.codes.tolist() == [[3, 5, 1, 3], [0, 1, 3, 0]]


# Signals, by an oracle


class Level:
    """The normal score of a value's mid-rank, centred and scaled over the reference's own values."""

    def __init__(self, reference):
        self.known = [float(value) for value in reference if value is not None and math.isfinite(value)]
        scores = [self.score(value) for value in self.known]
        self.mean, self.deviation = (fmean(scores), pstdev(scores)) if scores else (0.0, 0.0)

    def score(self, value):
        below = sum(known < value for known in self.known)
        at_most = sum(known <= value for known in self.known)
        return NormalDist().inv_cdf((below + at_most + 1) / (2.0 * (len(self.known) + 1)))

    @property
    def constant(self):
        return self.deviation < 1e-9

    def __call__(self, value):
        return 0.0 if value is None or math.isnan(value) else (self.score(value) - self.mean) / self.deviation


class Spread:
    def __init__(self, reference):
        self.level = Level(reference)
        spreads = [self.raw(value) for value in self.level.known] if not self.level.constant else [0.0]
        self.mean, self.deviation = fmean(spreads), pstdev(spreads)

    def raw(self, value):
        return min(4.0, (self.level(value) ** 2 - 1.0) / math.sqrt(2.0))

    @property
    def constant(self):
        return self.level.constant or self.deviation < 1e-9

    def __call__(self, value):
        return 0.0 if value is None or math.isnan(value) else (self.raw(value) - self.mean) / self.deviation


def signals_by_name(reference):
    """Signals of a reference, and under which name (of column, kind and category) each of their values stands."""
    made = Signals(reference.columns)
    return made, {(*signal.columns, signal.kind, signal.category): place for place, signal in enumerate([*made.singles, *made.pairs])}


@settings(deadline=None, max_examples=25)
@given(cells=st.lists(NUMBERS, min_size=2, max_size=24), window=st.lists(NUMBERS, min_size=1, max_size=12))
def test_level_and_spread_are_normal_scores_centred_and_scaled_over_the_reference(cells, window):
    reference = reference_of(x=cells, p=["a", *"b" * (len(cells) - 1)])
    made, places = signals_by_name(reference)
    values = made.of(codes_of(reference.columns, window, ["a"] * len(window)))
    for kind, oracle in (("level", Level(cells)), ("spread", Spread(cells))):
        assert ((0, kind, "") in places) == (not oracle.constant)
        if not oracle.constant:
            of_kind = values[:, places[0, kind, ""]]
            assert of_kind == pytest.approx([oracle(value) for value in window], abs=1e-8, rel=1e-8)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_each_signal_of_values_has_mean_0_and_variance_1_over_the_reference(data):
    rows = data.draw(st.integers(40, 120))
    cells = [
        data.draw(st.lists(st.sampled_from(pool), min_size=rows, max_size=rows))
        for pool in ([1.0, 2.0, 3.0], [0.0, 0.5, -1.0, 1e9, 7.0], [0.0, 1.0])
    ]
    reference = reference_of(x=cells[0], y=cells[1], p=cells[2])
    made = Signals(reference.columns)
    values = made.of(reference.codes)
    for place, signal in enumerate(made.singles):
        of_one, law = values[:, place], made.laws[place]
        assert law.shares.sum() == pytest.approx(1.0)
        assert law.shares @ law.values == pytest.approx(0.0, abs=1e-7)
        assert law.shares @ law.values**2 == pytest.approx(1.0)
        if signal.kind in ("level", "spread"):
            assert of_one.mean() == pytest.approx(0.0, abs=1e-7)
            assert of_one.std() == pytest.approx(1.0)
            assert np.unique(of_one.round(6)).tolist() == pytest.approx(np.unique(law.values.round(6)).tolist(), abs=1e-5)


def indicator(hit, share):
    return (hit - share) / math.sqrt(share * (1.0 - share))


def never_seen(counts, values):
    """Good's estimate of the share of values that the sample does not hold, with room for its error."""
    once = sum(count == 1 for count in counts)
    return (once + 2.0 * math.sqrt(once + 1.0) + 1.0) / values


def test_the_indicators_of_a_categorical_column_are_those_of_the_table():
    # 60 % a, 25 % b, 2 % c (common still), 1.9 % d and e, 10 % missing, one value that occurs once.
    cells = ["a"] * 600 + ["b"] * 250 + ["c"] * 20 + ["d"] * 19 + ["e"] * 10 + ["once"] + [None] * 100
    reference = reference_of(c=cells, p=[0.0] * 1000)
    made, places = signals_by_name(reference)
    window = ["a", "b", "c", "d", "e", "once", "new", None]
    values = made.of(codes_of(reference.columns, window, [0.0] * len(window)))
    kinds = [(kind, category) for column, kind, category in places if column == 0]
    assert kinds == [*(("category", name) for name in "abc"), ("rare", ""), ("unseen", ""), ("missing", "")]
    for name, share in (("a", 0.6), ("b", 0.25), ("c", 0.02)):
        assert values[:, places[0, "category", name]] == pytest.approx([indicator(cell == name, share) for cell in window])
    rare = values[:, places[0, "rare", ""]]
    assert (np.sign(rare) == [-1, -1, -1, 1, 1, 1, -1, -1]).all()
    unseen = values[:, places[0, "unseen", ""]]
    assert unseen == pytest.approx([indicator(cell == "new", never_seen([600, 250, 20, 19, 10, 1], 900)) for cell in window])
    assert values[:, places[0, "missing", ""]] == pytest.approx([indicator(cell is None, 0.1) for cell in window])
    both = {(signal.kind, signal.category): signal.both for signal in made.singles if signal.columns == (0,)}
    assert both == {**{("category", name): True for name in "abc"}, ("rare", ""): True, ("unseen", ""): False, ("missing", ""): True}


def test_of_two_categories_one_is_watched_and_of_one_none():
    reference = reference_of(c=["a"] * 60 + ["b"] * 40, d=["only"] * 100, p=["y"] * 98 + ["n"] * 2)
    _, places = signals_by_name(reference)
    watched = [(column, category) for column, kind, category in places if kind == "category"]
    assert watched == [(0, "a"), (2, "y")]
    assert {(1, "unseen", ""), (1, "missing", "")} <= places.keys()


def test_missing_values_never_seen_have_a_share_of_three_rows_and_only_rise():
    reference = reference_of(x=[float(row) for row in range(200)], p=[1.0] * 150 + [NAN] * 50)
    made, places = signals_by_name(reference)
    values = made.of(codes_of(reference.columns, [1.0, NAN, INF], [1.0, NAN, 1.0]))
    assert values[:, places[0, "missing", ""]] == pytest.approx([indicator(hit, 3 / 200) for hit in (0, 1, 0)])
    assert values[:, places[1, "missing", ""]] == pytest.approx([indicator(hit, 0.25) for hit in (0, 1, 0)])
    assert not made.singles[places[0, "missing", ""]].both
    assert made.singles[places[1, "missing", ""]].both


def test_a_missing_value_leaves_the_other_signals_of_its_column_at_0():
    rng = np.random.default_rng(1)
    reference = reference_of(x=list(rng.normal(size=300)), y=list(rng.normal(size=300)), p=list(rng.integers(0, 9, 300).astype(float)))
    made, places = signals_by_name(reference)
    (values,) = made.of(codes_of(reference.columns, [NAN], [0.7], [NAN]))
    for name in [(0, "level", ""), (0, "spread", ""), (2, "level", ""), (2, "spread", ""), (0, 1, "pair", ""), (0, 2, "pair", "")]:
        assert values[places[name]] == 0.0
    assert values[places[1, "level", ""]] > 0.0


def test_new_values_are_watched_where_a_numeric_column_has_few():
    few = [float(row % 50) for row in range(500)]
    many = [float(row % 51) for row in range(500)]
    reference = reference_of(few=few, many=many, p=[3.0] * 500)
    made, places = signals_by_name(reference)
    assert [column for column, kind, _ in [name for name in places if len(name) == 3] if kind == "unseen"] == [0, 2]
    values = made.of(codes_of(reference.columns, [49.0, 48.5, NAN, INF], [1.0] * 4, [3.0, 2.0, 4.0, NAN]))
    share = never_seen([10] * 50, 500)
    assert values[:, places[0, "unseen", ""]] == pytest.approx([indicator(hit, share) for hit in (0, 1, 0, 1)])
    assert values[:, places[2, "unseen", ""]] == pytest.approx([indicator(hit, share) for hit in (0, 1, 1, 0)])
    assert not made.singles[places[0, "unseen", ""]].both


# Pairs


def test_a_pair_is_the_product_of_both_levels_each_clipped():
    rng = np.random.default_rng(2)
    cells = {"x": rng.normal(size=4000), "c": ["a", "b"] * 2000, "y": rng.exponential(size=4000), "p": rng.random(4000)}
    reference = reference_of(**{name: list(values) for name, values in cells.items()})
    made, places = signals_by_name(reference)
    assert [signal.columns for signal in made.pairs] == [(0, 2), (0, 3), (2, 3)]
    cells = [np.array([-9.0, 0.3, 9.0, -1.0]), ["a"] * 4, np.array([0.0, 5.0, 99.0, 0.2]), np.array([0.5, 0.9, 2.0, -1.0])]
    values = made.of(codes_of(reference.columns, *cells))
    levels = {column: values[:, places[column, "level", ""]] for column in (0, 2, 3)}
    assert np.abs(levels[0]).max() > 2.6
    for first, second in ((0, 2), (0, 3), (2, 3)):
        clipped = [np.clip(levels[column], -2.5, 2.5) for column in (first, second)]
        assert values[:, places[first, second, "pair", ""]].tolist() == (clipped[0] * clipped[1]).tolist()


@pytest.mark.parametrize(("columns", "pairs"), [(1, 0), (2, 1), (MOST_PAIRED, MOST_PAIRED * (MOST_PAIRED - 1) // 2), (MOST_PAIRED + 1, 0)])
def test_all_pairs_are_watched_of_two_to_thirty_numeric_columns_and_none_of_more(columns, pairs):
    cells = np.random.default_rng(3).normal(size=(columns, 12))
    # Columns without a level do not count.
    reference = reference_of(c=["a"] * 12, constant=[1.0] * 12, **{f"x{number}": list(one) for number, one in enumerate(cells)})
    made = Signals(reference.columns)
    assert len(made.pairs) == pairs == len({signal.columns for signal in made.pairs})
    values = made.of(reference.codes)
    assert values.shape == (12, len(made.singles) + pairs)
    assert np.isfinite(values).all()


# Odd references


@pytest.mark.parametrize("outlier", [1e300, -1e300, INF, -INF])
def test_no_outlier_moves_a_signal_more_than_the_references_own_extreme(outlier):
    rng = np.random.default_rng(4)
    cells = list(rng.normal(size=500))
    reference = reference_of(x=cells, y=list(rng.normal(size=500)), p=["a"] * 500)
    made, places = signals_by_name(reference)
    extreme, far = made.of(codes_of(reference.columns, [max(cells) if outlier > 0 else min(cells), outlier], [0.1, 0.1], ["a", "a"]))
    assert abs(far[places[0, "level", ""]]) <= abs(extreme[places[0, "level", ""]]) + 0.35, "half a rank farther out"
    for name in ((0, "spread", ""), (0, 1, "pair", "")):
        assert abs(far[places[name]]) <= abs(extreme[places[name]]) * 1.2 + 1e-9
    # Two in the reference itself move no other value by more than their ranks.
    blinded = reference_of(x=[*cells, outlier, 1e300], y=[0.0, 1.0] * 251, p=["a"] * 502)
    before = made.of(codes_of(reference.columns, [0.5], [0.1], ["a"]))[0, 0]
    assert Signals(blinded.columns).of(codes_of(blinded.columns, [0.5], [0.0], ["a"]))[0, 0] == pytest.approx(before, abs=0.02)


def test_a_constant_column_has_no_level_and_a_two_valued_one_no_spread_at_even_shares():
    reference = reference_of(constant=[7.0] * 80, flag=[0.0, 1.0] * 40, skewed=[0.0, 0.0, 0.0, 1.0] * 20, p=["a"] * 80)
    _, places = signals_by_name(reference)
    of_column = {number: {name[1] for name in places if name[0] == number and len(name) == 3} for number in range(4)}
    assert of_column == {
        0: {"unseen", "missing"},
        1: {"level", "unseen", "missing"},
        2: {"level", "unseen", "missing"} | of_column[2] & {"spread"},
        3: {"unseen", "missing"},
    }


@pytest.mark.parametrize("cells", [[NAN] * 30, [None] * 30, [INF] * 30])
def test_of_a_column_without_any_value_it_is_watched_that_it_has_none(cells):
    reference = reference_of(x=cells, p=["a", "b", "c"] * 10)
    made, places = signals_by_name(reference)
    assert [name[1] for name in places if name[0] == 0] == ["missing"]
    assert made.of(codes_of(reference.columns, [NAN, 1.0], ["a", "a"]))[:, 0] == pytest.approx([indicator(hit, 0.9) for hit in (1, 0)])


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7])
def test_a_few_rows_tell_no_share_for_sure(rows):
    reference = reference_of(c=[*"a" * (rows - 1), "b"], p=[1.0] * rows)
    made = Signals(reference.columns)
    least = min(0.5, 3 / rows)
    (law,) = [law for signal, law in zip(made.singles, made.laws, strict=True) if (signal.columns, signal.kind) == ((1,), "missing")]
    assert law.shares.tolist() == pytest.approx([1.0 - least, least])
    for signal, law in zip(made.singles, made.laws, strict=True):
        assert signal.kind in ("level", "spread", "unseen") or law.shares.min() >= least - 1e-9


def test_categories_that_are_all_rare_leave_no_rare_signal_of_rounding():
    """Their shares sum up to 1 but for the last bit: whether a category is one of them is no signal."""
    for many in (51, 97, 101, 120, 203):
        reference = reference_of(c=[f"c{number}" for number in range(many)] * 3, p=[0.0, 1.0, 2.0] * many)
        made = Signals(reference.columns)
        assert np.abs(made.of(reference.codes)).max() < 50.0
        assert all(np.abs(law.values).max() < 50.0 for law in made.laws)


def test_a_reference_of_no_rows_has_no_signal_of_the_empty_column():
    full, empty = column_of([1.0, 2.0]), column_of([])
    assert {signal.columns for signal in Signals([empty, full]).singles} == {(1,)}


def test_what_the_docstring_promises_are_the_numbers_used():
    told = cusum_signals.__doc__
    assert "2 % or more" in told and cusum_signals.COMMON == 0.02
    assert "at most 4" in told and cusum_signals.CAP == 4.0
    assert "clipped at 2.5" in told and cusum_signals.CLIP == 2.5
    assert "up to 30" in told and MOST_PAIRED == 30


# The recursion


@settings(deadline=None)
@given(
    steps=st.lists(st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3), min_size=1, max_size=30),
    start=st.lists(st.floats(0.0, 5.0), min_size=3, max_size=3),
    data=st.data(),
)
def test_the_recursion_is_pages_row_by_row_whatever_the_blocks(steps, start, data):
    by_hand, now = [], list(start)
    for row in steps:
        now = [max(0.0, before + step) for before, step in zip(now, row, strict=True)]
        by_hand.append(now)
    after, state, done = [], np.array(start), 0
    while done < len(steps):
        stop = min(len(steps), done + data.draw(st.integers(1, len(steps))))
        block = np.array(steps[done:stop])
        kept = state.copy()
        accumulate(block, state)
        assert state.tolist() == kept.tolist(), "the start is not changed"
        after += block.tolist()
        state, done = block[-1], stop
    assert after == by_hand


@given(rows=st.integers(0, 2000))
def test_blocks_follow_each_other_and_cover_all_rows(rows):
    made = [*blocks(rows)]
    assert [row for start, stop in made for row in range(start, stop)] == [*range(rows)]
    assert all(stop > start for start, stop in made)
