"""Where a series most likely left what was normal, and how much speaks for it: the maximum of a likelihood ratio (Hinkley 1970).

What is normal is known, what came after is taken from the newest stretch of the series: all of it, its newest half, quarter, and so on down
to 16 values, whichever gives most. (Taken from every possible rest it would be from the last few hits of a rare one: 4 of 5.) Of each of
these the place is sought from which on the rest of the series is likelier under it than under the normal by most. The logarithm of that
ratio is the evidence, in nats; it is 0 when nothing speaks for a change.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streaming.core.reference import Floats

_SHORTEST = 16
_UNSURE = 2.0


class ChangePoint(NamedTuple):
    """The first place of the series that is no longer normal (0 = its first), the evidence, and whether it went up (1.0) or down (-1.0).

    `earlier`: nearly as much (2 nats less at most) speaks for the whole series, so it may have been before.
    """

    place: int
    evidence: float
    side: float
    earlier: bool


NOWHERE = ChangePoint(0, 0.0, 0.0, True)


def left_level(values: Floats, mean: float, variance: float, side: float = 0.0) -> ChangePoint:
    """A change of the mean of values that have this one and this variance; NaN is left out. `side` 1.0: only a rise, -1.0: only a fall.

    A value x speaks for a change by d with ((x - mean) d - d^2 / 2) / variance.
    """
    known = ~np.isnan(values)
    total, count = _from_each(np.where(known, values - mean, 0.0)), _from_each(known)
    newest = _stretches(len(values))
    by = total[newest] / np.maximum(count[newest], 1.0)
    by = by[by * side >= 0] if variance > 0 else by[:0]
    return _highest((np.outer(by, total) - np.outer(by**2 / 2.0, count)) / max(variance, 1e-300), by)


def left_share(hits: NDArray[np.bool_], share: float, side: float = 0.0) -> ChangePoint:
    """A change of the share of hits, of which this one (above 0 and below 1) is normal. `side` 1.0: only a rise, -1.0: only a fall.

    A hit speaks for a share q with ln(q / share), any other value with ln((1 - q) / (1 - share)).
    """
    found, count = _from_each(hits), np.arange(len(hits), 0.0, -1.0)
    newest = _stretches(len(hits))
    # No nearer to 0 or 1 than half a value of the stretch can tell.
    least = 0.5 / np.maximum(count[newest], 1.0)
    shares = np.clip(found[newest] / np.maximum(count[newest], 1.0), least, 1.0 - least)
    shares = shares[(shares - share) * side >= 0]
    return _highest(
        np.outer(np.log(shares / share), found) + np.outer(np.log((1.0 - shares) / (1.0 - share)), count - found), shares - share
    )


def told_by(share: float, rows: int) -> float:
    """A share, no nearer to 0 or 1 than so many rows can tell."""
    least = min(0.5, 3.0 / max(1, rows))
    return min(max(share, least), 1.0 - least)


def _stretches(rows: int) -> NDArray[np.int64]:
    """Where the newest stretches begin."""
    lengths = [rows >> halved for halved in range(max(1, rows).bit_length()) if rows >> halved >= min(_SHORTEST, rows) > 0]
    return rows - np.array(lengths, dtype=np.int64)


def _from_each(values: NDArray[Any]) -> Floats:
    """The sum from each place to the end."""
    sums: Floats = np.cumsum(values[::-1], dtype=np.float64)[::-1]
    return sums


def _highest(evidence: Floats, by: Floats) -> ChangePoint:
    """Of the evidence for a change by so much (rows) from each place on (columns)."""
    if not evidence.size:
        return NOWHERE
    stretch, place = np.unravel_index(int(np.argmax(evidence)), evidence.shape)
    most = float(evidence[stretch, place])
    earlier = bool(evidence[stretch, 0] >= most - _UNSURE)
    return ChangePoint(int(place), most, float(np.sign(by[stretch])), earlier) if most > 0 else NOWHERE
