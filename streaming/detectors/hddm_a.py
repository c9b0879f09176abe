"""HDDM_A: Hoeffding's bound on averages (Frias-Blanco et al. 2014), river's implementation; for labelled errors."""

from typing import Literal

from pydantic import Field

from streaming.detectors.river import RiverDetector, RiverSpec


class HddmA(RiverSpec):
    """Fires when the mean since the lowest point is above the mean up to it by more than `drift_confidence` would allow."""

    kind: Literal["hddm_a"] = "hddm_a"
    drift_confidence: float = Field(default=0.0001, gt=0, lt=1)

    def build(self, seed: int, signals: int) -> RiverDetector:
        from river.drift.binary import HDDMA
        from river.stats import Mean

        return RiverDetector(HDDMA(self.drift_confidence, warning_confidence=self.drift_confidence), Mean)
