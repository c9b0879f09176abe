"""The sliding window holds just the newest rows, and a verdict falls due at the same rows wherever batches are cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.versions import Feature, Schema
from streaming.core.reference import prepare
from streaming.core.window import CountWindow

SCHEMA = Schema((Feature("x", "numeric"), Feature("c", "categorical")), "numeric", "y")
COLUMNS = prepare("default/m", "1", SCHEMA, {"x": [1.0], "c": ["a"], "prediction": [0.0]}).columns


def feed(window, start, count):
    numbers = np.arange(start, start + count, dtype=float)
    names = np.array([f"n{i}" for i in range(start, start + count)], dtype=object)
    return window.extend([numbers, names, -numbers], np.arange(start, start + count), numbers / 10)


@given(size=st.integers(2, 40), data=st.data())
def test_any_cut_of_the_stream_gives_the_same_windows(size, data):
    slide = data.draw(st.integers(1, size))
    cuts = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=12))
    window = CountWindow(size, slide).build(COLUMNS)
    seen, judged = 0, []
    for count in cuts:
        for part, due in feed(window, seen, count):
            assert part.stop > part.start
            if due:
                newest = seen + part.stop
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
    list(window.extend([np.array([1.5, np.nan]), np.array(["a", None], dtype=object), np.array([0.0, 1.0])], np.array([0, 1]), np.zeros(2)))
    assert window.evidence() == {"x": (1.5, None), "c": ("a", None), "prediction": (0.0, 1.0)}


@pytest.mark.parametrize(("size", "slide"), [(1, 1), (10, 0), (10, 11)])
def test_a_window_that_makes_no_sense_is_refused(size, slide):
    with pytest.raises(ValueError, match=r"window\."):
        CountWindow(size, slide)
