"""Whether a reference is one that limits can be calibrated from: long enough for how its rows depend on each other, and not drifting."""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from streaming.core.bootstrap.stretches import Sample
from streaming.core.cusum.signals import Signals
from streaming.core.dependence import halves, periodic
from streaming.core.reference import Reference

_BY_CHANCE = 0.001
_FEW_ROWS = 1_000
_FEW_STRETCHES = 50
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Soundness:
    """How the reference's rows depend on each other, and the columns that differ between its first and its second half."""

    sample: Sample
    drifting: tuple[str, ...]

    def warnings(self) -> list[str]:
        """What a person must know before they trust limits that come from it."""
        told = []
        if self.sample.rows < _FEW_ROWS:
            told.append(
                f"the reference has {self.sample.rows} rows: with fewer than {_FEW_ROWS:,} limits are wide, and less sure to be held"
            )
        stretches = self.sample.rows // self.sample.block
        if self.sample.block > 1 and stretches < _FEW_STRETCHES:
            told.append(
                f"rows depend on each other over about {self.sample.block}: the reference holds {stretches} stretches that do not, "
                f"too few to know how far they swing; {_FEW_STRETCHES * self.sample.block:,} rows would do"
            )
        if self.sample.rows and self.drifting:
            more = len(self.drifting) - _NAMED
            names = ", ".join(self.drifting[:_NAMED]) + (f" and {more} more" if more > 0 else "")
            told.append(
                f"the reference itself drifts: its first and its second half differ in {names}. "
                "Limits take that for usual, and see changes later; take a reference from a time in which nothing changed"
            )
        return told


def soundness(reference: Reference) -> Soundness:
    """Of the columns that have signals; a difference between halves counts where chance alone makes one in a thousand references differ."""
    names, parts = [], []
    for place, column in enumerate(reference.columns):
        if column.rows:
            values = Signals([column]).of(reference.codes[[place]])
            names += [column.name] * values.shape[1]
            parts.append(values)
    values = np.concatenate(parts, axis=1)
    apart = halves(periodic(values).rest)
    surely = stdtrit(apart.freedom, 1.0 - _BY_CHANCE / 2.0 / max(1, len(names)))
    differs = apart.apart > surely
    return Soundness(Sample.of(values), tuple(dict.fromkeys(name for name, over in zip(names, differs.tolist(), strict=True) if over)))
