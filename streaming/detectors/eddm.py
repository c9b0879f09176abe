"""EDDM: early drift detection method (Baena-Garcia et al. 2006), river's implementation; for labelled errors."""

from typing import ClassVar, Literal

from pydantic import Field

from streaming.detectors.river import RiverDetector, RiverSpec


class Eddm(RiverSpec):
    """Fires when the distances between errors (mean and 2 standard deviations) fall to `beta` of the largest that they ever were.

    It looks only after `warm_start` errors. river's own defaults (30 errors, 0.9) fire 3 to 6 times in 100,000 quiet labels.
    """

    binary: ClassVar[bool] = True
    kind: Literal["eddm"] = "eddm"
    warm_start: int = Field(default=300, ge=1)
    beta: float = Field(default=0.75, gt=0, lt=1)

    def build(self, seed: int, signals: int) -> RiverDetector:
        from river.drift.binary import EDDM
        from river.stats import Mean, Var

        return RiverDetector(EDDM(self.warm_start, alpha=(1.0 + self.beta) / 2.0, beta=self.beta), Mean, Var)
