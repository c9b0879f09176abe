"""Page-Hinkley: a cumulated sum of deviations from the running mean (Page 1954), river's implementation."""

from typing import Literal

from pydantic import Field

from streaming.detectors.river import RiverDetector, RiverSpec


class PageHinkley(RiverSpec):
    """Fires when the cumulated deviation beyond `delta` goes over `threshold`; both in units of the rank (0 to 1)."""

    kind: Literal["page_hinkley"] = "page_hinkley"
    delta: float = Field(default=0.05, ge=0, lt=1)
    threshold: float = Field(default=20.0, gt=0)
    min_instances: int = Field(default=30, ge=1)

    def build(self, seed: int, signals: int) -> RiverDetector:
        from river.drift import PageHinkley as River
        from river.stats import Mean

        detector = River(min_instances=self.min_instances, delta=self.delta, threshold=self.threshold)
        return RiverDetector(detector, Mean, River._test_both)
