"""A progress bar with rate and time left on stderr, where that is a terminal; silence elsewhere."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

_SMOOTHED = 10.0


class Bar:
    """Shows how many events have gone by, how many a second, and how long it will take where `total` is known."""

    def __init__(self, progress: "Progress", total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task("replay", total=total, rate="")
        self._began = time.monotonic()

    def at(self, events: int) -> None:
        rate = events / max(time.monotonic() - self._began, 1e-3)
        self._progress.update(self._task, completed=events, rate=f"{rate:,.0f} events/s")

    def say(self, text: str) -> None:
        """A line on stdout that does not run into the bar."""
        self._progress.stop()
        sys.stdout.write(f"{text}\n")
        self._progress.start()

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.stop()


def bar(total: int | None, stream: Any = None) -> AbstractContextManager[Bar | None]:
    """A bar on `stream` (stderr), or nothing where that is no terminal or rich is not installed."""
    shown = sys.stderr if stream is None else stream
    if not shown.isatty():
        return nullcontext(None)
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    except ModuleNotFoundError:
        return nullcontext(None)
    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn()]
    console = Console(file=shown)
    return Bar(Progress(*columns, console=console, transient=True, speed_estimate_period=_SMOOTHED), total)
