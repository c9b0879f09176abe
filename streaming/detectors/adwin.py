"""ADWIN: adaptive windowing (Bifet and Gavalda 2007), river's implementation."""

from typing import Any, Literal

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
        return AdwinDetector(detector, type(detector._helper))


class ErrorAdwin(Adwin):
    """ADWIN on labelled errors, of which there is one stream and whose false alarms cost a retraining.

    In 1,000,000 labels of a model that is always wrong in 1, 5, 10 or 30 % of them it told of no rise where errors are independent, of
    1 at most where they have an autocorrelation of 0.1, and of 6 at most with 0.3.
    """

    delta: float = Field(default=0.0005, gt=0, lt=1)


class AdwinDetector(RiverDetector):
    """Knows which of its values are behind the change: the part of its window that a detection leaves."""

    @property
    def changed(self) -> tuple[int, float] | None:
        detector: Any = self._detector
        width = int(detector.width)
        return (width, detector.total / width) if width else None
