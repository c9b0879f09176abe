"""Rows wait for older ones and go on in order of event time: what a row-by-row model says, wherever batches are cut or restarted."""

import math
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.core.reference import prepare
from streaming.core.watermark import Lateness
from streaming.core.window import Rows

SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "numeric", "y")
COLUMNS = prepare("default/m", "1", SCHEMA, {"x": [1.0], "c": ["a"], "prediction": [0.0]}).columns


def rows_of(occurred, times):
    numbers = np.arange(len(times), dtype=float)
    names = np.array([f"n{number}" for number in range(len(times))], dtype=object)
    return Rows.of(
        COLUMNS, [numbers, names, -numbers], np.arange(len(times)), np.array(times, dtype=float), np.array(occurred, dtype=float)
    )


def model(spec, occurred, times):
    """Row by row: the numbers of the released rows in order, each with the number of the row that released it; the counts; what waits."""
    newest = watermark = -math.inf
    waiting, released, counts = [], [], Counter()
    looked = max(1, spec.max_rows // 100)
    for number, (when, time) in enumerate(zip(occurred, times, strict=True)):
        if when > time + spec.ahead:
            counts["ahead"] += 1
        if not when <= time + spec.ahead:
            when = time
        newest = max(newest, when)
        watermark = max(watermark, newest - spec.lateness)
        if when < watermark:
            counts["late"] += 1
        else:
            waiting.append((when, number))
        released += [(one, number) for when, one in sorted(waiting) if when < watermark]
        waiting = [one for one in waiting if one[0] >= watermark]
        if (number + 1) % looked == 0 and len(waiting) > spec.max_rows:
            early = sorted(waiting)[: len(waiting) - spec.max_rows]
            counts["early"] += len(early)
            released += [(one, number) for _, one in early]
            waiting = [one for one in waiting if one not in early]
            watermark = max(watermark, early[-1][0])
    return released, counts, sorted(waiting)


def taken(spec, rows, cuts, *, restarts=False):
    """The same of the product, in pieces."""
    counts = Counter()
    waiting, released, done = spec.build(COLUMNS, counts), [], 0
    for stop in [*cuts, len(rows)]:
        for piece in waiting.take(rows.part(done, stop)):
            assert len(piece.places) == len(piece.rows)
            assert (np.diff(piece.watermarks) >= 0).all()
            cells = [piece.rows.cells[0].tolist(), piece.rows.cells[1].tolist(), piece.rows.offsets.tolist()]
            assert cells == [[float(one) for one in cells[2]], [f"n{one}" for one in cells[2]], cells[2]]
            released += zip(piece.rows.offsets.tolist(), (piece.places + done).tolist(), strict=True)
        done = stop
        if restarts:
            anew = spec.build(COLUMNS, counts)
            anew.restore(msgspec.msgpack.decode(msgspec.msgpack.encode(waiting.state())))
            assert msgspec.msgpack.encode(anew.state()) == msgspec.msgpack.encode(waiting.state())
            waiting = anew
    return released, counts, waiting


SPECS = st.builds(Lateness, st.sampled_from([0.0, 1.0, 5.0, 30.0]), st.sampled_from([3, 20, 250, 100_000]), st.sampled_from([0.0, 10.0]))
# Event times around the append times, some far off, some untold, many the same.
JITTER = st.one_of(st.integers(-6, 6), st.integers(-6, 6), st.sampled_from([-1000, 40, 10**9, math.nan, math.inf, -math.inf, 0.5]))
STEPS = st.lists(st.tuples(st.sampled_from([0, 0, 1, 2, 50]), JITTER), min_size=1, max_size=120)


@settings(deadline=None)
@given(spec=SPECS, steps=STEPS, data=st.data())
def test_what_is_released_when_and_what_is_late_is_what_a_row_by_row_model_says(spec, steps, data):
    times = np.cumsum([step for step, _ in steps]).astype(float) + 1000.0
    occurred = [time + jitter for time, (_, jitter) in zip(times.tolist(), steps, strict=True)]
    rows = rows_of(occurred, times)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(rows) - 1)), max_size=8)))
    cuts = [cut for cut in cuts if cut < len(rows)]
    # The model takes -inf for what it is: a time that nobody can have meant stands for the append time like NaN.
    known = [math.nan if math.isinf(one) and one < 0 else one for one in occurred]
    expected, counts, left = model(spec, known, times.tolist())
    for restarts in (False, True):
        released, counted, waiting = taken(spec, rows, cuts, restarts=restarts)
        assert released == expected
        assert counted == counts
        assert waiting.arrived == len(rows)
        assert waiting.rows == len(left) <= spec.max_rows + max(1, spec.max_rows // 100)
    assert msgspec.msgpack.encode(waiting.state()) == msgspec.msgpack.encode(taken(spec, rows, [])[2].state())


def test_rows_of_the_same_time_go_on_as_they_came():
    occurred = np.random.default_rng(1).integers(0, 3, 400).astype(float)
    rows = rows_of(np.append(occurred, 100.0), np.full(401, 100.0))
    released = [one for one, _ in taken(Lateness(10.0, 100_000, 0.0), rows, [])[0]]
    assert released == sorted(range(400), key=lambda number: (occurred[number], number))


def test_many_small_pieces_wait_like_one():
    times = np.arange(500.0)
    spec = Lateness(1000.0, 100_000, 0.0)
    waiting = taken(spec, rows_of(times[::-1].copy(), np.full(500, 1000.0)), range(1, 500))[2]
    assert waiting.rows == 500
    last = Rows.of(COLUMNS, [np.zeros(1), np.array(["a"], dtype=object), np.zeros(1)], [500], [5000.0])
    (piece,) = waiting.take(last)
    assert piece.rows.offsets.tolist() == [*range(499, -1, -1)]


def test_what_waits_is_bounded_and_goes_on_early_when_there_is_too_much():
    spec = Lateness(1e6, 1000, 0.0)
    times = np.arange(5000.0)
    released, counts, waiting = taken(spec, rows_of(times, times), range(100, 5000, 100))
    assert waiting.rows == 1000
    assert counts == {"early": 4000}
    assert [one for one, _ in released] == [*range(4000)]


STATE = Lateness(1.0, 10, 0.0).build(COLUMNS, Counter())
STATE.take(rows_of([5.0, 5.0], [5.0, 5.0]))
STATE = STATE.state()


@pytest.mark.parametrize(
    "changed",
    [
        {"arrived": -1},
        {"watermark": 6.0},
        {"newest": math.nan},
        {"cells": STATE["cells"][:2]},
        {"offsets": b"\0" * 8},
        {"occurred": b"\0" * 7},
        {"occurred": np.array([math.nan, 5.0]).tobytes()},
    ],
)
def test_a_memory_that_does_not_fit_is_refused(changed):
    Lateness(1.0, 10, 0.0).build(COLUMNS, Counter()).restore(STATE)
    with pytest.raises(ValueError):
        Lateness(1.0, 10, 0.0).build(COLUMNS, Counter()).restore({**STATE, **changed})
