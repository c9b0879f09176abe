"""What the demo sees of the watcher: its journal, read as it grows."""

import contextlib
from pathlib import Path
from typing import Any

import orjson


class Observed:
    """The outcomes so far, by kind, and the newest status. `poll` reads on."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._read = 0
        self.verdicts: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []
        self.notices: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {}

    def poll(self) -> None:
        path = self._state / "outcomes.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            for line in whole.splitlines():
                self._take(orjson.loads(line))
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            self.status = orjson.loads((self._state / "status.json").read_bytes())

    def _take(self, outcome: dict[str, Any]) -> None:
        kinds = {"verdict": self.verdicts, "decision": self.decisions, "notice": self.notices}
        kinds[outcome["outcome"]].append(outcome)

    @property
    def acted(self) -> list[dict[str, Any]]:
        """The decisions that did something."""
        return [decision for decision in self.decisions if decision["action"] != "hold"]

    def finished(self, run_id: str) -> dict[str, Any] | None:
        """The end of a run, as the log tells it."""
        ends = (notice for notice in self.notices if notice["kind"] == "retraining_finished" and notice["data"]["run_id"] == run_id)
        return next(ends, None)

    def promoted(self, version: str) -> dict[str, Any] | None:
        """The take-over of a version."""
        return next((notice for notice in self.notices if notice["kind"] == "promoted" and notice["version"] == version), None)

    def verdicts_of(self, version: str) -> list[dict[str, Any]]:
        return [verdict for verdict in self.verdicts if verdict["version"] == version]

    def model(self, name: str) -> dict[str, Any]:
        """The newest status of one model, {} before there is any."""
        found: dict[str, Any] = self.status.get("models", {}).get(name, {})
        return found
