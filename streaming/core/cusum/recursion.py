"""The recursion: S = max(0, S + x - allowance) of every statistic, row by row, all statistics at once (Page 1954)."""

from collections.abc import Iterable, Iterator

import numpy as np

from streaming.core.reference import Floats

BLOCK = 128
"""Rows that are taken at once: a bound for memory, without effect on the outcome."""


def blocks(rows: int) -> Iterator[tuple[int, int]]:
    """Start and end of each block of so many rows."""
    for start in range(0, rows, BLOCK):
        yield start, min(rows, start + BLOCK)


def accumulate(steps: Floats, start: Floats) -> None:
    """Turn steps, rows x statistics, into the statistics after each row, in place, from what they were before the first."""
    add, maximum, before = np.add, np.maximum, start
    for row in steps:
        add(row, before, out=row)
        maximum(row, 0.0, out=row)
        before = row


def walk(stretches: Iterable[Floats], count: int) -> Iterator[Floats]:
    """The statistics after each row, a stretch of steps at a time, from 0 on."""
    state = np.zeros(count)
    for steps in stretches:
        accumulate(steps, state)
        state = steps[-1].copy()
        yield steps
