"""Quiet stretches of rows, drawn in blocks from a time-ordered sample: the same on every machine for the same seed."""

from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from streaming.core.dependence import LongRun, block_length, long_run, periodic
from streaming.core.reference import Floats

Places = NDArray[np.int64]

_NEAREST = 0.01
_FEWEST_NEAR = 8
_PARTS = {1: 256, 2: 32}
"""How finely the places in one cycle, or in each of two, are told apart."""
_STEP, _FIRST, _SECOND = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Dice:
    """Whole numbers by SplitMix64 (Steele, Lea and Flood 2014), many at a time; numpy's own generators may change with its versions."""

    def __init__(self, *seed: object) -> None:
        self._at = np.uint64(int.from_bytes(blake2b(repr(seed).encode(), digest_size=8).digest(), "little"))

    def below(self, end: int, count: int) -> Places:
        """`count` numbers from 0 to `end` - 1 (at most 2^32), all equally likely."""
        with np.errstate(over="ignore"):
            mixed = self._at + _STEP * np.arange(1, count + 1, dtype=np.uint64)
            self._at = self._at + _STEP * np.uint64(count)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
            mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
            mixed ^= mixed >> np.uint64(31)
        return (((mixed >> np.uint64(32)) * np.uint64(end)) >> np.uint64(32)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of so many rows, and how they depend on each other: the length of a block, and of the cycles, in rows.

    `known` is what its signals tell, their cycles left out.
    """

    rows: int
    block: int
    periods: tuple[float, ...]
    known: LongRun
    _nearest: dict[tuple[int, ...], Places] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, values: Floats) -> "Sample":
        """From the signals of each row, rows x signals."""
        told = periodic(values)
        known = long_run(told.rest)
        return cls(len(values), block_length(known, len(values)), told.periods, known)

    def drawn(self, start: int, count: int, dice: Dice) -> Places:
        """`count` rows in blocks, as they might stand at `start` and behind it (the sample itself begins at 0).

        Where there are cycles a block begins where they stand nearest to what is wanted there: with any of the nearest hundredth of rows.
        """
        blocks = -(-count // self.block)
        begins = dice.below(self.rows - self.block + 1, blocks)
        if self.periods:
            begins = self._near(start + self.block * np.arange(blocks), dice)
        return (begins[:, None] + np.arange(self.block)).reshape(-1)[:count]

    def _near(self, wanted: Places, dice: Dice) -> Places:
        """For each of these places one of the rows at which all cycles stand nearest to where they would there."""
        fine = _PARTS[len(self.periods)]
        parts = np.array([np.round(wanted / period % 1.0 * fine) % fine for period in self.periods], dtype=np.int64)
        keys, which = np.unique(parts, axis=1, return_inverse=True)
        rows = np.array([self._rows_at(tuple(key)) for key in keys.T.tolist()])
        return rows[which.reshape(-1), dice.below(rows.shape[1], len(wanted))]

    def _rows_at(self, parts: tuple[int, ...]) -> Places:
        """The rows nearest to these parts of the cycles."""
        if parts not in self._nearest:
            possible = np.arange(self.rows - self.block + 1)
            near = min(len(possible), max(_FEWEST_NEAR, int(_NEAREST * len(possible))))
            furthest = np.zeros(len(possible))
            for period, part in zip(self.periods, parts, strict=True):
                turns = possible / period - part / _PARTS[len(self.periods)]
                np.maximum(furthest, np.abs(turns - np.round(turns)), out=furthest)
            self._nearest[parts] = np.argpartition(furthest, near - 1)[:near]
        return self._nearest[parts]
