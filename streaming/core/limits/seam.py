"""What a limit, its judge and an online detector are, and which columns a limit is for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from inference.errors import SettingsError
from streaming.core.reference import Column, Reference
from streaming.core.verdict import Finding
from streaming.core.window import Rows, SlidingWindow


class Detector(Protocol):
    """An online change detector of one signal."""

    def feed(self, values: Sequence[float]) -> list[int]:
        """Take the next finite values; the places among them at which a change is detected (the detector then starts anew by itself)."""
        ...

    def state(self) -> bytes:
        """All that its next answers depend on."""
        ...

    def restore(self, state: bytes) -> None:
        """Go on from what `state` of a detector of the same settings gave; SnapshotError when it can't, and nothing changed."""
        ...


class Judge(Protocol):
    """A built limit of one monitor: `observe` gets every row once, in order; `judge` is called at each full slide, and where asked for."""

    def observe(self, rows: Rows) -> Sequence[int]:
        """New rows; after how many of them (from 1) `judge` must be called, beside the slides."""
        ...

    def judge(self, window: SlidingWindow) -> tuple[list[Finding], bool]:
        """The findings after the window's newest row (`window.rows`), and whether the limit is breached.

        That row may lie before the last that was observed: what came after it must not count.
        """
        ...

    def began(self, window: SlidingWindow) -> int | None:
        """Called after `judge` of the same window, of a limit that is breached: the window's row (0 = oldest) at which what it is about
        began; None when this limit cannot tell."""
        ...

    def state(self) -> dict[str, Any]:
        """Its memory as plain values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> str:
        """Go on from what `state` of a judge of the same limit gave, on one that has observed nothing yet.

        Says what had to start anew nevertheless, and why; "" when nothing had to. ValueError: this is no such state.
        """
        ...


class Limit(Protocol):
    """A frozen limit; SettingsError from `build` when it does not fit the reference."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """All of its settings as text, the same in every process: the memory of a limit with another text does not fit it."""
        ...

    def build(self, reference: Reference, size: int) -> Judge:
        """A judge with no memory yet, for windows of `size` rows. Of a window of a stretch of time `size` is how many rows tell their
        rate; which rows such a window holds is told with the rows (`Rows.since`) and by the window."""
        ...


def chosen_columns(
    limit: str, reference: Reference, wanted: tuple[str, ...] | None, takes: Callable[[Column], bool]
) -> list[tuple[int, Column]]:
    indexed = list(enumerate(reference.columns))
    if wanted is not None:
        names = [column.name for column in reference.columns]
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise SettingsError([f"limit {limit!r}: no such column {', '.join(unknown)}; {reference.model} has {', '.join(names)}"])
        unfit = [column.name for _, column in indexed if column.name in wanted and not takes(column)]
        if unfit:
            raise SettingsError([f"limit {limit!r}: this test cannot take {', '.join(unfit)}; leave them out or choose another test"])
        indexed = [(index, column) for index, column in indexed if column.name in wanted]
    chosen = [(index, column) for index, column in indexed if takes(column)]
    if not chosen:
        raise SettingsError([f"limit {limit!r}: no column of {reference.model} that this test can take"])
    return chosen
