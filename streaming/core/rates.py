"""How often labelled predictions were wrong, and how late their labels came."""

from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat

Count = Annotated[int, Field(ge=0, lt=2**62)]
"""A number of things, in a memory that may be anything: not so large that counting on makes it overflow."""


class _State(BaseModel):
    labels: Count
    total: FiniteFloat
    recent: list[FiniteFloat]
    lags: list[FiniteFloat]


class Rates:
    """Of one version: since it took over, and of the newest `size` labels. An error is 0 or 1, or an absolute error; a lag is in seconds of
    log time, one a request."""

    def __init__(self, size: int) -> None:
        self.labels = 0
        self._total = 0.0
        self._recent: deque[float] = deque(maxlen=size)
        self._lags: deque[float] = deque(maxlen=size)

    def add(self, error: float) -> int:
        """Count a labelled error; its number, from 0."""
        self.labels += 1
        self._total += error
        self._recent.append(error)
        return self.labels - 1

    def correct(self, number: int, known: float, error: float) -> None:
        """The error with this number is another than was known."""
        self._total += error - known
        place = number - (self.labels - len(self._recent))
        if 0 <= place < len(self._recent):
            self._recent[place] = error

    def late(self, lag: float) -> None:
        """The labels of a request came so late."""
        self._lags.append(lag)

    def status(self) -> dict[str, Any]:
        """As plain JSON values; None where there is nothing to tell from."""
        lags, recent = [*self._lags], [*self._recent]
        return {
            "labelled": self.labels,
            "error": sum(recent) / len(recent) if recent else None,
            "of": len(recent),
            "error_since_takeover": self._total / self.labels if self.labels else None,
            "lag_median": float(np.quantile(lags, 0.5)) if lags else None,
            "lag_p95": float(np.quantile(lags, 0.95)) if lags else None,
        }

    def state(self) -> dict[str, Any]:
        """Its memory as plain values."""
        return {"labels": self.labels, "total": self._total, "recent": [*self._recent], "lags": [*self._lags]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; ValueError when it gave no such thing."""
        known = _State.model_validate(state)
        self.labels, self._total = known.labels, known.total
        self._recent.extend(known.recent)
        self._lags.extend(known.lags)
