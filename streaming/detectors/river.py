"""river's detectors behind our seam, their memory as bytes: a pickle that may hold nothing but what the detector is made of."""

import io
import pickle
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from inference.errors import SnapshotError

MAX_STATE = 4 * 1024 * 1024
"""Bytes of one detector's memory; the largest there is, KSWIN's window of 10,000 values, takes a fortieth."""

_PROTOCOL = 5


class RiverSpec(BaseModel):
    """A detector as configured. `binary` tells whether it takes 0 and 1 only."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    binary: ClassVar[bool] = False

    @property
    def settings(self) -> str:
        """All of it as text, the same on every machine: whoever has another text has another detector."""
        return repr(sorted(self.model_dump(mode="json").items()))


class _RiverDrift(Protocol):
    drift_detected: bool

    def update(self, x: float) -> object: ...


class RiverDetector:
    """A detector of river's; it starts anew by itself at the value after a detection.

    `parts` are the classes, functions and methods that its pickle names: the only ones that `restore` takes.
    """

    def __init__(self, detector: _RiverDrift, *parts: Any) -> None:
        self._detector = detector
        self._parts = (type(detector), *parts)

    def feed(self, values: Sequence[float]) -> list[int]:
        detector, places = self._detector, []
        try:
            for place, value in enumerate(values):
                detector.update(value)
                if detector.drift_detected:
                    places.append(place)
        except Exception:
            raise
        except BaseException as error:
            raise _no_panic(error) from error
        return places

    @property
    def changed(self) -> tuple[int, float] | None:
        """Right after a detection: how many of the newest values are behind the change, and their mean; None when it cannot tell."""
        return None

    def state(self) -> bytes:
        """Its memory: river's version, a line break, a pickle."""
        for name, value in vars(self._detector).items():
            if hasattr(value, "item"):
                # A p-value of scipy's. As a float it needs nothing of numpy's in the pickle, whose names change with its versions.
                setattr(self._detector, name, value.item())
        return _river().encode() + b"\n" + pickle.dumps(self._detector, _PROTOCOL)

    def restore(self, state: bytes) -> None:
        """Go on from what `state` gave, on a detector of the same settings; SnapshotError when it can't, and nothing changed."""
        written_by, _, pickled = state.partition(b"\n")
        if written_by != _river().encode():
            raise SnapshotError(f"the detectors were written by river {written_by[:20].decode(errors='replace')}, this is {_river()}")
        if len(pickled) > MAX_STATE:
            raise SnapshotError(f"a detector's memory has {len(pickled)} bytes; at most {MAX_STATE} are read")
        found = _load(pickled, self._parts)
        if type(found) is not type(self._detector) or vars(found).keys() != vars(self._detector).keys():
            raise SnapshotError(
                f"a detector's memory is that of a {type(found).__name__}, not of a {type(self._detector).__name__} of this river"
            )
        self._detector = found


@lru_cache(maxsize=1)
def _river() -> str:
    return version("river")


def _load(pickled: bytes, parts: tuple[Any, ...]) -> Any:
    try:
        return _Unpickler(pickled, parts).load()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # Whatever a damaged pickle makes Python, or the Rust part of river, raise.
        raise SnapshotError(f"a detector's memory cannot be read: {_no_panic(error)}") from error


class _Unpickler(pickle.Unpickler):
    """Knows the given parts and nothing else: no other class, no function, no attribute of anything."""

    def __init__(self, pickled: bytes, parts: tuple[Any, ...]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._parts = parts

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            # How a pickle names a method of an object.
            return self._method
        for part in self._parts:
            if (part.__module__, part.__qualname__) == (module, name):
                return part
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no such detector is made of")

    def _method(self, owner: Any, name: str) -> Any:
        method = vars(type(owner)).get(name)
        if method is None or method not in self._parts:
            raise pickle.UnpicklingError(f"it names the attribute {name!r} of a {type(owner).__name__}, which no such detector is made of")
        return method.__get__(owner)


def _no_panic(error: BaseException) -> BaseException:
    """What river's Rust part calls a panic is no Exception in Python, and would end the process: as a RuntimeError it doesn't."""
    return RuntimeError(f"river panicked: {error}") if type(error).__name__ == "PanicException" else error
