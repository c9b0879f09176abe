"""The monitor of one version of one model: rows in, verdicts out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import compress
from typing import Any

from pydantic import BaseModel

from inference.event import deterministic_id
from streaming.core.governor import Governor
from streaming.core.limits import Limit
from streaming.core.onset import drift_began
from streaming.core.reference import Reference
from streaming.core.verdict import Span, Verdict
from streaming.core.window import CountWindow, Rows


@dataclass(frozen=True, slots=True)
class MonitorSpec:
    """How a model is watched: its window, its limits (any one breached is drift) and its governor."""

    window: CountWindow
    limits: tuple[Limit, ...]
    governor: Governor

    def __post_init__(self) -> None:
        names = [limit.name for limit in self.limits]
        if not names:
            raise ValueError("a model needs at least one limit")
        if len(set(names)) != len(names):
            raise ValueError(f"limits need different names, not {', '.join(names)}")


class _State(BaseModel):
    fingerprint: str
    window: dict[str, Any]
    limits: list[dict[str, Any]]
    verdicts: int
    last: Verdict | None


class Monitor:
    """Measures every full window of one version against its reference. SettingsError when a limit does not fit it."""

    def __init__(self, spec: MonitorSpec, reference: Reference, partition: int) -> None:
        self.reference = reference
        self._partition = partition
        self._window = spec.window.build(reference.columns)
        self._limits = [(limit.name, limit.build(reference, spec.window.size)) for limit in spec.limits]
        self._fingerprint = _fingerprint(spec, reference)
        self._verdicts = 0
        self.last: Verdict | None = None

    @property
    def predictions(self) -> int:
        """Rows seen since the version took over."""
        return self._window.rows

    def feed(
        self, rows: Sequence[Sequence[Any]], predictions: Sequence[Any], offsets: Sequence[int], times: Sequence[float]
    ) -> Iterator[Verdict]:
        """Take rows (cells in the schema's order), their predictions, and where on the log each stands; yields verdicts
        as they fall due."""
        columns = self.reference.columns
        cells = [column.array(values) for column, values in zip(columns, [*zip(*rows, strict=True), predictions], strict=True)]
        return self.take(Rows.of(columns, cells, offsets, times))

    def take(self, rows: Rows) -> Iterator[Verdict]:
        """As `feed`, by column. A verdict falls due at each slide of a full window, and where a limit asks for one."""
        start = 0
        while start < len(rows):
            until = min(len(rows), start + self._window.until_due)
            stretch = rows if until - start == len(rows) else rows.part(start, until)
            asked = [frozenset(judge.observe(stretch)) for _, judge in self._limits]
            done = 0
            for stop in sorted({len(stretch)}.union(*asked)):
                self._window.put(stretch if stop - done == len(stretch) else stretch.part(done, stop))
                done = stop
                due = self._window.due
                called = [due or stop in rows for rows in asked]
                if any(called):
                    yield self._judge(called)
            start += done

    def _judge(self, called: Sequence[bool]) -> Verdict:
        """The verdict of the limits that are called upon: all of them at a slide, else those that asked for it."""
        findings, breached = [], []
        for name, judge in compress(self._limits, called):
            found, over = judge.judge(self._window)
            findings += found
            if over:
                breached.append(name)
        self._verdicts += 1
        model, version, seen = self.reference.model, self.reference.version, self._window.rows
        span = self._window.span(self._partition)
        id_ = deterministic_id("verdict", model, version, span.partition, span.last_offset, seen)
        self.last = Verdict(id_, model, version, self._verdicts, seen, span, tuple(findings), tuple(breached))
        return self.last

    def drift_began(self, verdict: Verdict) -> Span:
        """Where the drift of the newest verdict most likely began, to the window's end."""
        told = [judge.began(self._window) for name, judge in self._limits if name in verdict.breached]
        first = min((place for place in told if place is not None), default=None)
        return self._window.span(self._partition, drift_began(self._window, self.reference, verdict.findings) if first is None else first)

    def evidence(self) -> dict[str, tuple[Any, ...]]:
        """The window by column as plain values."""
        return self._window.evidence()

    def state(self) -> dict[str, Any]:
        """Its memory as plain values, for `restore`."""
        return {
            "fingerprint": self._fingerprint,
            "window": self._window.state(),
            "limits": [judge.state() for _, judge in self._limits],
            "verdicts": self._verdicts,
            "last": _plain(self.last) if self.last else None,
        }

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        """Go on from what `state` gave, on a monitor that has seen nothing yet; ValueError when it gave no such thing.

        Says what starts anew nevertheless, and why: everything, when the memory is of another window or of other limits.
        """
        known = _State.model_validate(state)
        if known.fingerprint != self._fingerprint:
            return ["the window, the limits or the columns changed"]
        self._window.restore(known.window)
        told = [judge.restore(memory) for (_, judge), memory in zip(self._limits, known.limits, strict=True)]
        self._verdicts, self.last = known.verdicts, known.last
        return [reason for reason in told if reason]


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "findings": [finding._asdict() for finding in verdict.findings], "breached": list(verdict.breached)}


def _fingerprint(spec: MonitorSpec, reference: Reference) -> str:
    """The same in every process for the same window, limits and columns, and for no others."""
    columns = [(column.name, column.kind) for column in reference.columns]
    told = (spec.window.size, spec.window.slide, [limit.fingerprint for limit in spec.limits], columns)
    return blake2b(repr(told).encode(), digest_size=16).hexdigest()
