"""Labels joined with predictions: any order of either, repeats and promotions, within bounds, by the rules of the retraining's join."""

import math
from collections import Counter

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inference.messages import Label
from pipelines.joining import Join, Prediction
from streaming.core.labels import BEFORE_ANY, EARLY_ROWS, EARLY_WAIT, Waiting

IDS, SOURCES = ("a", "b", "x" * 80), ("pod-1", "pod-2")


def truthful(waiting, label, time):
    """As the judge does it: what the label says is remembered with each row. What was joined, or None."""
    joined = waiting.label(label, time)
    if joined:
        remember(joined)
    return joined


def remember(joined):
    for row, truth in enumerate(joined.truths):
        if truth is not None:
            joined.learned.numbers[row], joined.learned.errors[row] = 1, float(truth != joined.made.values[row])


def known(waiting):
    """Every labelled row: offset, row, error."""
    return {
        (one.offset, row): error
        for one in waiting._kept()
        if one.learned
        for row, (number, error) in enumerate(zip(one.learned.numbers, one.learned.errors, strict=True))
        if number >= 0
    }


class Naive:
    """The same rules over plain lists, by looking through everything each time."""

    def __init__(self, capacity, max_age):
        self.capacity, self.max_age = capacity, max_age
        self.now, self.any = -math.inf, False
        self.first, self.held, self.early, self.counts = [], [], [], Counter()

    def rows(self, one):
        return max(1, len(one["values"]))

    def add(self, *made):
        if self.any:
            self.put(*made)
        else:
            self.first.append(made)

    def put(self, id_, source, offset, time, values, apart):
        self.now = max(self.now, time)
        same = [one for one in self.held if (one["id"], one["source"]) == (id_, source)]
        if same:
            same[0].update(values=[], apart="ambiguous", truths={}, named=False)
            return
        group = [place for place, one in enumerate(self.held) if one["id"] == id_]
        made = {"id": id_, "source": source, "offset": offset, "time": time, "values": values, "apart": apart, "truths": {}, "named": False}
        self.held.insert(group[-1] + 1 if group else len(self.held), made)
        self.forget()
        self.drop_early()
        for by in (source, ""):
            for one in [one for one in self.early if (one[0], one[1]) == (id_, by)]:
                self.early.remove(one)
                self.counts["unmatched"] -= len(one[2])
                self.fit(made, one[2], by)
                return

    def forget(self):
        while self.held and (sum(map(self.rows, self.held)) > self.capacity or self.now - self.held[0]["time"] > self.max_age):
            oldest = self.held[0]["id"]
            for one in [one for one in self.held if one["id"] == oldest]:
                self.held.remove(one)
                if not one["apart"]:
                    self.counts["forgotten"] += len(one["values"]) - len(one["truths"])

    def drop_early(self):
        while self.early and (sum(len(one[2]) for one in self.early) > EARLY_ROWS or self.now - self.early[0][3] > EARLY_WAIT):
            self.early.pop(0)

    def label(self, label, time):
        self.now, self.any = max(self.now, time), True
        for made in self.first:
            self.put(*made)
        self.first = []
        self.forget()
        fits = [one for one in self.held if one["id"] == label.prediction_id and label.source in ("", one["source"])]
        if not fits:
            self.counts["unmatched"] += len(label.labels)
            self.early = [one for one in self.early if (one[0], one[1]) != (label.prediction_id, label.source)]
            self.early.append((label.prediction_id, label.source, label.labels, self.now))
            self.drop_early()
        elif len(fits) > 1:
            self.counts["ambiguous"] += len(label.labels)
        else:
            self.fit(fits[0], label.labels, label.source)

    def fit(self, made, labels, source):
        if made["apart"]:
            self.counts[made["apart"]] += len(labels)
        elif len(labels) != len(made["values"]):
            self.counts["label_count_differs"] += len(labels)
        elif made["named"] and not source:
            self.counts["duplicates"] += len(labels)
        else:
            made["named"] = bool(source)
            made["truths"] |= {row: truth for row, truth in enumerate(labels) if truth is not None}

    def took_over(self):
        for one in self.held:
            one.update(values=[], apart="other_version", truths={})
        self.first = [(*made[:4], [], "other_version") for made in self.first]
        self.early = []

    def known(self):
        return {(one["offset"], row): float(truth != one["values"][row]) for one in self.held for row, truth in one["truths"].items()}


VALUES = st.lists(st.sampled_from(["0", "1"]), min_size=1, max_size=3)
STEPS = st.one_of(
    st.tuples(st.just("predict"), st.sampled_from(IDS), st.sampled_from(SOURCES), VALUES, st.sampled_from(["", "", "", "other_version"])),
    st.tuples(
        st.just("label"),
        st.sampled_from(IDS),
        st.sampled_from(["", *SOURCES]),
        st.lists(st.sampled_from(["0", "1", None]), min_size=1, max_size=3),
    ),
    st.tuples(st.just("promote")),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 100.0, 250.0, 900.0])),
    st.tuples(st.just("restart")),
)


@settings(max_examples=400, deadline=None)
@given(steps=st.lists(STEPS, max_size=40), capacity=st.integers(1, 12))
@example(steps=[("label", "a", "", ["1"]), ("predict", "a", "pod-1", ["0"], ""), ("label", "a", "pod-1", ["0"])], capacity=5)
def test_any_order_of_predictions_labels_and_promotions_is_joined_as_by_looking_through_all_of_them(steps, capacity):
    waiting, naive, now, given_labels = Waiting(capacity, 1000.0), Naive(capacity, 1000.0), 0.0, 0
    for offset, (kind, *rest) in enumerate(steps):
        now += rest[0] if kind == "wait" else 1.0
        if kind == "predict":
            id_, source, values, apart = rest
            joined = waiting.add(id_, source, offset, now, values if not apart else (), apart)
            if joined:
                remember(joined)
            naive.add(id_, source, offset, now, values if not apart else [], apart)
        elif kind == "label":
            given_labels += len(rest[2])
            label = Label(rest[0], rest[1], tuple(rest[2]))
            truthful(waiting, label, now)
            naive.label(label, now)
        elif kind == "promote":
            waiting.took_over(numeric=False)
            naive.took_over()
        elif kind == "restart":
            state = msgspec.msgpack.decode(msgspec.msgpack.encode(waiting.state()))
            waiting = Waiting(capacity, 1000.0)
            waiting.restore(state)
            assert waiting.state() == state
        assert known(waiting) == naive.known()
        assert +waiting.counts == +naive.counts
        assert waiting.rows == sum(map(naive.rows, naive.held)) + sum(len(made[4]) or 1 for made in naive.first)
        assert waiting.rows <= capacity or not naive.any


@settings(max_examples=150, deadline=None)
@given(
    predictions=st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(SOURCES), VALUES), max_size=6, unique_by=lambda one: one[:2]),
    labels=st.lists(
        st.tuples(st.sampled_from(IDS), st.sampled_from(["", *SOURCES]), st.lists(st.sampled_from("01"), min_size=3, max_size=3)),
        max_size=8,
    ),
)
def test_what_is_joined_is_what_the_retraining_joins(predictions, labels):
    waiting, join = Waiting(100, 1000.0), Join()
    for offset, (id_, source, values) in enumerate(predictions):
        waiting.add(id_, source, offset, 0.0, values)
        join.add_prediction(Prediction(id_, source, [[row, value] for row, value in enumerate(values)], offset, 0.0))
    lengths = {(id_, source): len(values) for id_, source, values in predictions}
    for id_, source, truths in labels:
        # A label of another length replaces a good one there; here it changes nothing.
        rows = {lengths[key] for key in lengths if key[0] == id_ and source in ("", key[1])}
        label = Label(id_, source, tuple(truths[: min(rows, default=3)]))
        if len(rows) <= 1:
            truthful(waiting, label, 1.0)
            join.add_label(label)
    rows, _ = join.join()
    assert known(waiting) == {(row.offset, row.cells[0]): float(row.label != row.cells[1]) for row in rows}


def test_a_category_is_the_same_however_the_label_writes_it():
    waiting = Waiting(10, 10.0)
    for id_, value in (("a", "1"), ("b", "1"), ("c", "0.5"), ("d", "yes")):
        waiting.add(id_, "s", 0, 0.0, [value])
    told = [truthful(waiting, Label(id_, "", (label,)), 1.0).truths for id_, label in (("a", 1.0), ("b", True), ("c", 0.5), ("d", "yes"))]
    assert told == [["1"], ["1"], ["0.5"], ["yes"]]


def test_a_number_is_a_number_and_anything_else_is_none():
    waiting = Waiting(10, 10.0, numeric=True)
    waiting.add("a", "s", 0, 0.0, [1.0, 2.0, None, 4.0])
    truths = waiting.label(Label("a", "", (1, None, "3", True)), 1.0).truths
    assert truths[:2] == [1.0, None]
    assert all(math.isnan(one) for one in truths[2:])
    assert math.isnan(waiting.label(Label("a", "", (float("inf"), 1, 1, 1)), 1.0).truths[0])


def test_the_lag_is_log_time_and_never_negative():
    waiting = Waiting(10, 1000.0)
    waiting.add("a", "s", 0, 10.0, ["1"])
    assert waiting.label(Label("a", "", ("1",)), 17.5).lag == 7.5
    waiting.label(Label("b", "", ("1",)), 20.0)
    assert waiting.add("b", "s", 1, 25.0, ["1"]).lag == 0.0
    waiting.add("c", "s", 2, 30.0, ["1"])
    assert waiting.label(Label("c", "", ("1",)), 29.0).lag == 0.0, "append times of a log may go back"


def test_a_label_waits_five_minutes_for_its_prediction():
    for wait, found in ((EARLY_WAIT, True), (EARLY_WAIT + 1, False)):
        waiting = Waiting(10, 1000.0)
        waiting.label(Label("a", "", ("1",)), 10.0)
        assert waiting.counts["unmatched"] == 1
        assert (waiting.add("a", "s", 0, 10.0 + wait, ["1"]) is not None) is found
        assert waiting.counts["unmatched"] == (0 if found else 1)


def test_memory_is_bounded_whatever_comes():
    waiting = Waiting(50_000, 1e9)
    for number in range(BEFORE_ANY + 100):
        waiting.add(f"p{number}", "s", number, 1.0, ["1"])
    assert (waiting.rows, len(waiting.state()["kept"]["ids"])) == (BEFORE_ANY, BEFORE_ANY), "a model that has no labels keeps few"
    assert waiting.label(Label("p99", "", ("1",)), 2.0) is None
    assert waiting.label(Label("p100", "", ("1",)), 2.0) is not None
    assert waiting.counts == {"unmatched": 1}
    for number in range(100_000, 160_000):
        waiting.add(f"p{number}", f"s{number % 3}", number, 3.0, ["1"])
    assert waiting.rows == len(waiting._made) == 50_000
    for number in range(EARLY_ROWS + 500):
        waiting.label(Label(f"q{number}", "", ("1",)), 4.0)
    assert len(waiting._early) == waiting._early_rows == EARLY_ROWS
    for number in range(1000):
        waiting.add("same", f"source {number}", number, 5.0, ["1"])
    assert len(waiting._made["same"].all()) == 64


def test_one_request_of_more_rows_than_there_is_room_is_forgotten_at_once():
    waiting = Waiting(2, 10.0)
    waiting.label(Label("b", "", ("1",)), 0.0)
    waiting.add("a", "s", 0, 0.0, ["1"] * 3)
    assert (waiting.rows, waiting.counts["forgotten"]) == (0, 3)


def test_what_is_older_than_the_age_is_forgotten_and_counted():
    waiting = Waiting(100, 60.0)
    waiting.add("a", "s", 0, 0.0, ["1", "1"])
    waiting.add("b", "s", 1, 30.0, ["1"])
    assert waiting.label(Label("b", "", ("1",)), 60.0) is not None
    assert waiting.label(Label("a", "", ("1", "1")), 60.0) is not None, "as old as may be"
    assert waiting.label(Label("a", "", ("1", "1")), 60.1) is None
    assert (waiting.counts["unmatched"], waiting.counts["forgotten"]) == (2, 2)


@pytest.mark.parametrize(
    "changed",
    [
        {"ids": ["a"]},
        {"places": b""},
        {"rows": b"\xff\xff\xff\xff" * 2},
        {"kinds": b"\x00\x09"},
        {"values": b""},
        {"values": ["1"]},
        {"numbers": b"1"},
        {"errors": b""},
        {"early": [["z", "", ["1"]]]},
        {"counts": {"forgotten": -1}},
        {"learned": b"\x00"},
    ],
)
def test_a_memory_that_is_none_is_refused(changed):
    waiting = Waiting(10, 10.0)
    waiting.add("a", "s", 0, 0.0, ["1", "0"])
    waiting.add("b", "s", 1, 0.0, ["1"])
    truthful(waiting, Label("a", "", ("1", "1")), 1.0)
    state = waiting.state()
    Waiting(10, 10.0).restore(state)
    with pytest.raises(ValueError):
        Waiting(10, 10.0).restore({**state, **changed, "kept": {**state["kept"], **changed}})
