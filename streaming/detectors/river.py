"""river's detectors behind our seam."""

from typing import Protocol


class _RiverDrift(Protocol):
    drift_detected: bool

    def update(self, x: float) -> object: ...


class RiverDetector:
    """A detector of river's; it starts anew by itself at the value after a detection."""

    def __init__(self, detector: _RiverDrift) -> None:
        self._detector = detector

    def update(self, value: float) -> bool:
        self._detector.update(value)
        return bool(self._detector.drift_detected)
