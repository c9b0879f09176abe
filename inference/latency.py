"""A histogram of latencies that costs next to nothing to fill."""

from bisect import bisect_left
from typing import Any

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets, in seconds; one without a bound follows."""


class Latency:
    """Counts by bucket, and the sum."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self._sum += seconds

    def snapshot(self) -> dict[str, Any]:
        """`buckets`: how many there were in each, not cumulated; `sum` in seconds."""
        return {"bounds": list(BOUNDS), "buckets": list(self._counts), "sum": self._sum}
