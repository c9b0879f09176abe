"""ADWIN: adaptive windowing (Bifet and Gavalda 2007), river's implementation."""

from typing import Literal

from pydantic import Field

from streaming.detectors.river import RiverDetector, RiverSpec


class Adwin(RiverSpec):
    """Splits its adaptive window where two parts differ by more than chance at `delta` would allow.

    `delta` is for all signals of a limit together: each detector gets `delta` / number of signals. Checks every `clock` values.
    """

    kind: Literal["adwin"] = "adwin"
    delta: float = Field(default=0.002, gt=0, lt=1)
    clock: int = Field(default=32, ge=1, le=10_000)

    def build(self, seed: int, signals: int) -> RiverDetector:
        from river.drift import ADWIN

        detector = ADWIN(delta=self.delta / signals, clock=self.clock)
        return RiverDetector(detector, type(detector._helper))
