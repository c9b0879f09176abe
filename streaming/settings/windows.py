"""How predictions are cut into windows: by number, by time, by a column's values."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from streaming.settings.values import Frozen, Seconds


class WindowSettings(Frozen):
    """The last `size` predictions, judged each `slide` of them."""

    size: int = Field(default=500, ge=2, le=1_000_000)
    slide: int = Field(default=50, ge=1)

    @model_validator(mode="after")
    def _slide_fits(self) -> Self:
        if self.slide > self.size:
            raise ValueError(f"slide must be at most size ({self.size}), not {self.slide}")
        return self


class TimeWindowSettings(Frozen):
    """The predictions of the last `length` by event time, judged each `slide`; what is more than `lateness` late is left out."""

    length: Annotated[Seconds, Field(ge=1, le=31 * 86400)]
    slide: Annotated[Seconds, Field(ge=1)]
    lateness: Annotated[Seconds, Field(le=86400)] = 0.0
    min_rows: int = Field(default=30, ge=1)
    max_rows: int = Field(default=100_000, ge=1000, le=1_000_000)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.slide > self.length:
            raise ValueError(f"slide must be at most length ({self.length:g}s), not {self.slide:g}s")
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows must be at most max_rows ({self.max_rows}), not {self.min_rows}")
        return self


_TIME = frozenset({"length", "lateness", "min_rows", "max_rows"})
TAKEN_WINDOW_NAMES = frozenset({"errors", "schema"})
"""Windows of labelled errors and of what cannot be read: their verdicts are told apart by these names."""


def _measure(value: object) -> str:
    """What a window's size is measured in."""
    if isinstance(value, Mapping):
        return "time" if "size" not in value and _TIME & value.keys() else "count"
    return "time" if isinstance(value, TimeWindowSettings) else "count"


def _window_name(name: str) -> str:
    if name in TAKEN_WINDOW_NAMES:
        raise ValueError(f"no window can be named {' or '.join(sorted(TAKEN_WINDOW_NAMES))}: driftloop has some of its own")
    return name


AnyWindowSettings = Annotated[Annotated[WindowSettings, Tag("count")] | Annotated[TimeWindowSettings, Tag("time")], Discriminator(_measure)]
WindowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$"), AfterValidator(_window_name)]


class SegmentSettings(Frozen):
    """Windows of their own for the most frequent values of a categorical column, those with `min_rows` rows in the reference."""

    column: str
    at_most: int = Field(default=20, ge=1, le=200)
    min_rows: int = Field(default=200, ge=2)
