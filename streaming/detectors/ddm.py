"""DDM: drift detection method (Gama et al. 2004), river's implementation; for labelled errors."""

from typing import ClassVar, Literal

from pydantic import Field

from streaming.detectors.river import RiverDetector, RiverSpec


class Ddm(RiverSpec):
    """Fires when the error rate p and its standard deviation s are `drift_threshold` times s above the lowest that they ever were.

    It looks only after `warm_start` labels: with few of them, none wrong, the first that is would be taken for drift. river's own
    defaults (30 labels, 3 s) fire 13 times in 100,000 labels of a model that is wrong in 1 % of them.
    """

    binary: ClassVar[bool] = True
    kind: Literal["ddm"] = "ddm"
    warm_start: int = Field(default=500, ge=1)
    drift_threshold: float = Field(default=4.0, gt=0)

    def build(self, seed: int, signals: int) -> RiverDetector:
        from river.drift.binary import DDM
        from river.stats import Mean

        warning = min(2.0, self.drift_threshold)
        return RiverDetector(DDM(self.warm_start, warning_threshold=warning, drift_threshold=self.drift_threshold), Mean)
