"""KSWIN: Kolmogorov-Smirnov windowing (Raab et al. 2020), river's implementation, seeded."""

from collections import deque
from random import Random
from typing import Literal, Self

from pydantic import Field, model_validator

from streaming.detectors.river import RiverDetector, RiverSpec


class Kswin(RiverSpec):
    """Compares the newest `stat_size` values with as many drawn from the rest of its window; about 4,000 values/s.

    `alpha` is for all signals of a limit together: each detector gets `alpha` / number of signals.
    """

    kind: Literal["kswin"] = "kswin"
    alpha: float = Field(default=0.001, gt=0, lt=1)
    window_size: int = Field(default=100, ge=4, le=10_000)
    stat_size: int = Field(default=30, ge=2)
    seed: int = 7

    @model_validator(mode="after")
    def _half_at_most(self) -> Self:
        if self.stat_size * 2 > self.window_size:
            raise ValueError(f"stat_size must be at most half of window_size ({self.window_size}), not {self.stat_size}")
        return self

    def build(self, seed: int, signals: int) -> RiverDetector:
        from river.drift import KSWIN

        detector = KSWIN(self.alpha / signals, self.window_size, self.stat_size, seed=self.seed + seed)
        return RiverDetector(detector, deque, Random)
