"""How right the model was along the way, as far as labels tell, and whether an alarm came before that fell.

It fell when the share of right answers among the newest labels is more than four standard errors of that difference below the share among
the version's first ones; as many are compared as the configuration's `errors.size` (500). Four, since it is looked at over and over.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from pydantic import BaseModel

_POINTS = 500
_SURE = 4.0


class _Point(BaseModel):
    time: float
    labels: int
    accuracy: float | None
    error: float


class _Fall(BaseModel):
    time: float
    labels: int
    first: float
    accuracy: float
    alarm_before: bool
    alarm_time: float | None


class _Memory(BaseModel):
    points: list[_Point] = []
    every: int = 1
    seen: int = 0
    first: float | None = None
    first_of: int = 0
    alarm_time: float | None = None
    fall: _Fall | None = None


class Accuracy:
    """The newest labels' accuracy at most 500 times along the way, and its first fall."""

    def __init__(self) -> None:
        self._memory = _Memory()

    def told(self, labels: Mapping[str, Any], time: float, size: int, *, categorical: bool) -> None:
        """What labels say now (`ModelStream.status`): the error of the newest `size` of them."""
        error, of = labels.get("error"), int(labels.get("of") or 0)
        if error is None or not of:
            return
        accuracy = 1.0 - float(error) if categorical else None
        memory = self._memory
        if memory.seen % memory.every == 0:
            memory.points.append(_Point(time=time, labels=int(labels["labelled"]), accuracy=accuracy, error=float(error)))
            if len(memory.points) == _POINTS:
                memory.points, memory.every = memory.points[::2], 2 * memory.every
        memory.seen += 1
        if accuracy is not None and of >= size and memory.fall is None:
            self._look(accuracy, of, int(labels["labelled"]), time)

    def _look(self, accuracy: float, of: int, labelled: int, time: float) -> None:
        memory = self._memory
        if memory.first is None:
            memory.first, memory.first_of = accuracy, of
            return
        both = (memory.first * memory.first_of + accuracy * of) / (memory.first_of + of)
        error = sqrt(max(both * (1.0 - both), 1.0 / of) * (1.0 / memory.first_of + 1.0 / of))
        if memory.first - accuracy > _SURE * error:
            alarm = memory.alarm_time
            memory.fall = _Fall(
                time=time, labels=labelled, first=memory.first, accuracy=accuracy, alarm_before=alarm is not None, alarm_time=alarm
            )

    def alarm(self, time: float) -> None:
        """An alarm, about whatever: the version's first."""
        if self._memory.alarm_time is None:
            self._memory.alarm_time = time

    def promoted(self) -> None:
        """Another version: what it falls from is its own."""
        memory = self._memory
        memory.first, memory.first_of, memory.alarm_time = None, 0, None

    @property
    def points(self) -> list[dict[str, Any]]:
        return [point.model_dump() for point in self._memory.points]

    @property
    def fall(self) -> dict[str, Any] | None:
        return self._memory.fall.model_dump() if self._memory.fall else None

    def state(self) -> dict[str, Any]:
        return self._memory.model_dump(mode="json")

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; ValueError when it gave no such thing."""
        self._memory = _Memory.model_validate(state)
