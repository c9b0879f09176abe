"""The sliding window holds just the newest rows, and a verdict falls due at the same rows wherever batches are cut."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.core.reference import prepare
from streaming.core.window import CountWindow, Rows

SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "numeric", "y")
COLUMNS = prepare("default/m", "1", SCHEMA, {"x": [1.0], "c": ["a"], "prediction": [0.0]}).columns


def feed(window, start, count):
    numbers = np.arange(start, start + count, dtype=float)
    names = np.array([f"n{i}" for i in range(start, start + count)], dtype=object)
    return extended(window, Rows.of(COLUMNS, [numbers, names, -numbers], np.arange(start, start + count), numbers / 10))


def extended(window, rows):
    """Put the rows in, stopping where a verdict falls due; after which of them, and whether one did."""
    start = 0
    while start < len(rows):
        stop = min(len(rows), start + window.until_due)
        window.put(rows.part(start, stop))
        yield stop, window.due
        start = stop


@settings(deadline=None)
@given(size=st.integers(2, 40), data=st.data())
def test_any_cut_of_the_stream_gives_the_same_windows(size, data):
    slide = data.draw(st.integers(1, size))
    cuts = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=12))
    window = CountWindow(size, slide).build(COLUMNS)
    seen, judged = 0, []
    for count in cuts:
        for stop, due in feed(window, seen, count):
            if due:
                newest = seen + stop
                judged.append(newest)
                assert window.values(0).tolist() == [float(i) for i in range(newest - size, newest)]
                assert window.values(1).tolist() == [f"n{i}" for i in range(newest - size, newest)]
                span = window.span(3)
                assert (span.partition, span.first_offset, span.last_offset) == (3, newest - size, newest - 1)
                assert span.last_time == (newest - 1) / 10
        seen += count
    assert window.rows == seen
    assert judged == [row for row in range(size, seen + 1) if (row - size) % slide == 0]


def test_evidence_is_plain_values_with_none_for_missing():
    window = CountWindow(2, 1).build(COLUMNS)
    cells = [np.array([1.5, np.nan]), np.array(["a", None], dtype=object), np.array([0.0, 1.0])]
    window.put(Rows.of(COLUMNS, cells, [0, 1], [0.0, 0.0]))
    assert window.evidence() == {"x": (1.5, None), "c": ("a", None), "prediction": (0.0, 1.0)}


@pytest.mark.parametrize(("size", "slide"), [(1, 1), (10, 0), (10, 11)])
def test_a_window_that_makes_no_sense_is_refused(size, slide):
    with pytest.raises(ValueError, match=r"window\."):
        CountWindow(size, slide)


NUMBERS = st.floats(width=64)
NAMES = st.one_of(st.none(), st.text(max_size=5))


@settings(deadline=None)
@given(size=st.integers(2, 12), cells=st.lists(st.tuples(NUMBERS, NAMES), max_size=60), data=st.data())
def test_a_window_that_is_restored_goes_on_as_if_nothing_had_been(size, cells, data):
    spec = CountWindow(size, data.draw(st.integers(1, size)))
    straight, restarted = spec.build(COLUMNS), spec.build(COLUMNS)
    start = 0
    while start < len(cells):
        part = cells[start : start + data.draw(st.integers(1, 20))]
        numbers = np.array([number for number, _ in part])
        names = np.empty(len(part), dtype=object)
        names[:] = [name for _, name in part]
        places = 2**62 + np.arange(start, start + len(part))
        anew = spec.build(COLUMNS)
        anew.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(restarted.state())))
        restarted = anew
        told = []
        for window in (straight, restarted):
            due = [
                (stop, due, repr(window.evidence()), window.span(3), window.codes.tolist())
                for stop, due in extended(window, Rows.of(COLUMNS, [numbers, names, -numbers], places, numbers))
            ]
            told.append((repr(due), window.rows, msgspec.msgpack.encode(window.state())))
        assert told[0] == told[1]
        start += len(part)


def test_every_bit_of_a_number_is_kept():
    window = CountWindow(4, 1).build(COLUMNS)
    bits = np.array([0x8000000000000000, 0x7FF8000000000ABC, 0xFFF0000000000000, 1], dtype=np.uint64)
    window.put(Rows.of(COLUMNS, [bits.view(np.float64), np.array(["a"] * 4, dtype=object), np.zeros(4)], np.arange(4), np.zeros(4)))
    anew = CountWindow(4, 1).build(COLUMNS)
    anew.restore(window.state())
    assert anew.values(0).view(np.uint64).tolist() == bits.tolist()


STATE = {"rows": 1, "cells": [b"\0" * 8, ["a"], b"\0" * 8], "offsets": b"\0" * 8, "times": b"\0" * 8}


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": 2},
        {"rows": -1},
        {"offsets": b"\0" * 16},
        {"times": b"\0" * 7},
        {"cells": STATE["cells"][:2]},
        {"cells": [["1.5"], ["a"], b"\0" * 8]},
        {"cells": [b"\0" * 8, b"\0" * 8, b"\0" * 8]},
        {"cells": [b"\0" * 8, ["a", "b"], b"\0" * 8]},
        {"cells": [b"\0" * 8, [1], b"\0" * 8]},
    ],
)
def test_a_state_that_does_not_fit_the_window_is_refused(changed):
    CountWindow(4, 1).build(COLUMNS).restore(STATE)
    with pytest.raises(ValueError):
        CountWindow(4, 1).build(COLUMNS).restore({**STATE, **changed})
