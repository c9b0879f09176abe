"""A prediction as it is remembered until its label comes, and many of them as columns of plain values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

_SHORT = 64

Key = str | bytes
"""A text as it is, a longer one as its digest: so this memory does not depend on how long ids are."""

Apart = Literal["", "ambiguous", "other_version"]
"""Why a prediction can't be joined, or ""."""

_APARTS: tuple[Apart, ...] = ("", "ambiguous", "other_version")


@dataclass(slots=True)
class Learned:
    """What labels told of a prediction: whether the newest names its source, and of each row its number among the version's labelled
    errors, -1 for none yet, with that error."""

    named: bool
    numbers: list[int]
    errors: list[float]


@dataclass(slots=True)
class Made:
    """The predictions of one request, a value per row, and where on the log they stand. `others` have the same id and another source."""

    source: Key
    offset: int
    time: float
    values: Sequence[Any]
    apart: Apart = ""
    learned: Learned | None = None
    others: "list[Made] | None" = None

    @property
    def rows(self) -> int:
        return len(self.values) or 1

    def lose(self, apart: Apart) -> None:
        """It can't be joined any more."""
        self.values, self.apart, self.learned = (), apart, None

    def all(self) -> "list[Made]":
        """Those of the same id, this one first."""
        return [self, *self.others] if self.others else [self]


class _Columns(BaseModel):
    ids: list[str | bytes]
    sources: list[str | bytes]
    places: bytes
    times: bytes
    kinds: bytes
    rows: bytes
    values: bytes | list[str | None]
    learned: bytes
    numbers: bytes
    errors: bytes


def key_of(text: str) -> Key:
    if len(text) <= _SHORT:
        return text
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def as_columns(kept: Sequence[tuple[Key, Made]], *, numeric: bool) -> dict[str, Any]:
    """Predictions with their ids, in order."""
    every = [made for _, made in kept]
    values = [*chain.from_iterable([made.values for made in every])]
    learned = [made.learned for made in every if made.learned]
    return {
        "ids": [key for key, _ in kept],
        "sources": [made.source for made in every],
        "places": np.array([made.offset for made in every], dtype="<i8").tobytes(),
        "times": np.array([made.time for made in every], dtype="<f8").tobytes(),
        "kinds": bytes([_APARTS.index(made.apart) for made in every]),
        "rows": np.array([len(made.values) for made in every], dtype="<i4").tobytes(),
        "values": np.array(values, dtype="<f8").tobytes() if numeric else values,
        "learned": bytes([0 if made.learned is None else 1 + made.learned.named for made in every]),
        "numbers": np.array([number for one in learned for number in one.numbers], dtype="<i8").tobytes(),
        "errors": np.array([error for one in learned for error in one.errors], dtype="<f8").tobytes(),
    }


def from_columns(columns: Mapping[str, Any], *, numeric: bool) -> Iterator[tuple[Key, Made]]:
    """What `as_columns` gave, in order; ValueError when it gave no such thing."""
    known = _Columns.model_validate(columns)
    count = len(known.ids)
    places, times, rows = _column(known.places, "<i8", count), _column(known.times, "<f8", count), _column(known.rows, "<i4", count)
    total = sum(rows)
    if isinstance(known.values, bytes) != numeric:
        raise ValueError("values of the other kind of prediction")
    values: list[Any] = known.values if isinstance(known.values, list) else _column(known.values, "<f8", total)
    if len({len(known.sources), len(known.kinds), len(known.learned), count}) > 1 or len(values) != total:
        raise ValueError(f"columns of different length for {count} predictions")
    if any(kind >= len(_APARTS) for kind in known.kinds) or any(number < 0 for number in (*places, *rows)):
        raise ValueError("a prediction that no log has")
    numbered = sum(row for row, one in zip(rows, known.learned, strict=True) if one)
    numbers, errors = _column(known.numbers, "<i8", numbered), _column(known.errors, "<f8", numbered)
    start = told = 0
    for place, key in enumerate(known.ids):
        stop = start + rows[place]
        made = Made(known.sources[place], places[place], times[place], values[start:stop], _APARTS[known.kinds[place]])
        if known.learned[place]:
            end = told + rows[place]
            made.learned = Learned(known.learned[place] > 1, numbers[told:end], errors[told:end])
            told = end
        yield key, made
        start = stop


def _column(stored: bytes, kind: str, count: int) -> list[Any]:
    cells: NDArray[Any] = np.frombuffer(stored, kind)
    if len(cells) != count:
        raise ValueError(f"{len(cells)} cells for {count}")
    return list(cells.tolist())
