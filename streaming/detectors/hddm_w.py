"""HDDM_W: McDiarmid's bound on exponentially weighted averages (Frias-Blanco et al. 2014), river's implementation; for labelled errors."""

from typing import Literal

from pydantic import Field

from streaming.detectors.river import RiverDetector, RiverSpec


class HddmW(RiverSpec):
    """Fires when the weighted mean since the lowest point is above the one up to it by more than `drift_confidence` would allow.

    The newest value has the weight `lambda_val`. river's own defaults (0.001 and 0.05) fire 47 times in 100,000 labels of a model that is
    wrong in 30 % of them.
    """

    kind: Literal["hddm_w"] = "hddm_w"
    drift_confidence: float = Field(default=0.00001, gt=0, lt=1)
    lambda_val: float = Field(default=0.01, gt=0, lt=1)

    def build(self, seed: int, signals: int) -> RiverDetector:
        from river.drift.binary import HDDMW
        from river.drift.binary.hddm_w import SampleInfo
        from river.stats import EWMean

        detector = HDDMW(self.drift_confidence, warning_confidence=self.drift_confidence, lambda_val=self.lambda_val)
        return RiverDetector(detector, SampleInfo, EWMean, type(EWMean()._ewmean))
