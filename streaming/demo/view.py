"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_STORY_LINES = 12


class View(Protocol):
    """Hears what happens. Used as a context manager."""

    def tell(self, text: str) -> None:
        """Something happened that belongs into the story."""
        ...

    def show(self, state: Mapping[str, Any]) -> None:
        """The newest numbers; may be called many times a second."""
        ...

    def __enter__(self) -> "View": ...

    def __exit__(self, *_: object) -> None: ...


class Lines:
    """The story as plain lines on stderr, for logs and `--json`."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def tell(self, text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - self._started:5.1f} s] {text}\n")
        sys.stderr.flush()

    def show(self, state: Mapping[str, Any]) -> None:
        return

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        return


class Screen:
    """A live view: counts, each feature's score against its limit, the run, the story."""

    def __init__(self, console: Console) -> None:
        self._started = time.monotonic()
        self._story: list[str] = []
        self._state: Mapping[str, Any] = {}
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._render, transient=False)

    def tell(self, text: str) -> None:
        self._story.append(f"[{time.monotonic() - self._started:5.1f} s] {text}")

    def show(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def __enter__(self) -> "Screen":
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def _render(self) -> Group:
        story = Text("\n".join(self._story[-_STORY_LINES:]), no_wrap=False)
        return Group(self._numbers(), self._findings(), Panel(story, title="what happened", title_align="left", border_style="dim"))

    def _numbers(self) -> Panel:
        state = self._state
        parts = [
            f"{time.monotonic() - self._started:5.1f} s",
            f"{state.get('phase', 'starting')}",
            f"{state.get('events', 0)} predictions, {state.get('labels', 0)} labels",
            f"version {state.get('version') or '-'}",
            f"run: {state.get('run', 'none')}",
            f"{state.get('slack', 0)} Slack messages",
        ]
        return Panel(Text("  |  ".join(parts)), title="driftloop demo", title_align="left", border_style="cyan")

    def _findings(self) -> Table:
        verdict = self._state.get("verdict")
        table = Table(
            expand=True,
            title_justify="left",
            title=_headline(verdict),
            title_style="bold red" if verdict and verdict["drift"] else "bold green",
        )
        for name, justify in (
            ("feature", "left"),
            ("limit", "left"),
            ("test", "left"),
            ("score", "right"),
            ("threshold", "right"),
            ("", "left"),
        ):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for finding in verdict["findings"] if verdict else ():
            over = finding["over"]
            score = "-" if finding["score"] is None else f"{finding['score']:.3g}"
            state = Text("over", "bold red") if over else Text(finding["unknown"] or "ok", "green")
            table.add_row(Text(finding["feature"]), finding["limit"], finding["test"], score, f"{finding['threshold']:.3g}", state)
        return table


def _headline(verdict: Mapping[str, Any] | None) -> str:
    if not verdict:
        return "no full window yet"
    state = f"DRIFT: over {', '.join(verdict['breached'])}" if verdict["drift"] else "stable"
    return f"window {verdict['number']} of version {verdict['version']}: {state}"


def make_view(*, plain: bool) -> View:
    """A live view where there is a terminal, else lines."""
    console = Console()
    return Lines() if plain or not console.is_terminal else Screen(console)


def slack_text(message: Mapping[str, Any]) -> list[str]:
    """A Slack message's text as lines for the story."""
    lines = [f"Slack: {message.get('text', '')}"]
    for block in message.get("blocks", ())[1:]:
        text = block.get("text", {}).get("text", "") if block.get("type") == "section" else ""
        lines += [f"    {line}" for line in text.replace("*", "").splitlines()]
    return lines
