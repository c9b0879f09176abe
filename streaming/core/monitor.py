"""The monitor of one version of one model: rows in, verdicts out."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from heapq import merge
from typing import Any

from pydantic import BaseModel

from inference.errors import SettingsError
from inference.event import deterministic_id
from streaming.core.errors import ErrorLimit
from streaming.core.explanation import explain
from streaming.core.governor import Governor
from streaming.core.limits import Limit
from streaming.core.reference import Reference
from streaming.core.schema import SchemaLimit
from streaming.core.segments import WHOLE, Segment, Segments, shared
from streaming.core.verdict import Decision, Place, Span, Verdict
from streaming.core.view import CountView, Judged, TimeView, View, Window
from streaming.core.watermark import Lateness, Released
from streaming.core.window import Rows


@dataclass(frozen=True, slots=True)
class MonitorSpec:
    """How a model is watched: its window, the limits on it (any one breached is drift), and its governor.

    `more` are further windows, each with limits of its own; then the first has a `name` too. A limit that judges after each prediction
    belongs to one window alone: in two it would spend its budget twice. `segments` have all these windows once more each.
    `errors` judges labelled predictions, `schema` those that can't be read; None: nobody does.
    """

    window: Window
    limits: tuple[Limit, ...]
    governor: Governor
    name: str = ""
    more: tuple[View, ...] = ()
    segments: Segments | None = None
    errors: ErrorLimit | None = None
    schema: SchemaLimit | None = None

    def __post_init__(self) -> None:
        names = [view.name for view in self.views]
        if len(set(names)) != len(names):
            raise ValueError(f"windows need different names, not {', '.join(names)}")

    @property
    def views(self) -> tuple[View, ...]:
        """All windows with their limits, the first one first."""
        return View(self.name, self.window, self.limits), *self.more


class _State(BaseModel):
    fingerprint: str
    window: dict[str, Any]
    limits: list[dict[str, Any]]
    verdicts: int
    last: Verdict | None
    more: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = []


class Monitor:
    """Measures the windows of one version against its reference. SettingsError when a limit does not fit it.

    `counts` gets what windows of time left out or judged otherwise than asked for: rows "late", "ahead", "early" (watermark.py) and
    "crowded_out", slides with "few_rows"; a row is counted once for each window and segment, "late", "ahead" and "early" for each lateness.
    A segment that a limit does not fit is left out, and `left_out` says why.
    """

    def __init__(self, spec: MonitorSpec, reference: Reference, partition: int, counts: Counter[str] | None = None) -> None:
        self.reference = reference
        self.counts = Counter() if counts is None else counts
        self.left_out: dict[str, str] = {}
        self._partition = partition
        self._spec = spec
        segments = spec.segments.of(reference) if spec.segments else []
        part = WHOLE if segments else 1.0
        self._views = self._built(reference, None, part)
        for segment in segments:
            try:
                self._views += self._built(segment.reference, segment, (1.0 - WHOLE) / len(segments))
            except SettingsError as error:
                self.left_out[segment.name] = str(error)
        latenesses = dict.fromkeys(view.lateness for view in self._views if isinstance(view, TimeView))
        self._waiting = {lateness: lateness.build(reference.columns, self.counts) for lateness in latenesses}
        self._fingerprint = _fingerprint(spec, reference, segments)
        self._verdicts = 0
        self.last: Verdict | None = None

    def _built(self, reference: Reference, segment: Segment | None, part: float) -> list[CountView | TimeView]:
        share = segment.share if segment else 1.0
        views = [View(view.name, view.window, tuple([shared(one, part, share) for one in view.limits])) for view in self._spec.views]
        return [view.build(reference, segment, self.counts) for view in views]

    @property
    def predictions(self) -> int:
        """Rows seen since the version took over."""
        first = self._views[0]
        return self._waiting[first.lateness].arrived if isinstance(first, TimeView) else first.window.rows

    @property
    def by_event_time(self) -> bool:
        """Whether the rows' event times count."""
        return bool(self._waiting)

    @property
    def parts(self) -> set[tuple[str, str]]:
        """Window and segment of all that its verdicts can be of."""
        return {(view.name, view.segment) for view in self._views}

    def feed(
        self,
        rows: Sequence[Sequence[Any]],
        predictions: Sequence[Any],
        offsets: Sequence[int],
        times: Sequence[float],
        occurred: Sequence[float] | None = None,
    ) -> Iterator[Verdict]:
        """Take rows (cells in the schema's order), their predictions, where on the log each stands, and when each occurred (`Rows`);
        yields verdicts as they fall due."""
        columns = self.reference.columns
        cells = [column.array(values) for column, values in zip(columns, [*zip(*rows, strict=True), predictions], strict=True)]
        return self.take(Rows.of(columns, cells, offsets, times, occurred))

    def take(self, rows: Rows) -> Iterator[Verdict]:
        """As `feed`, by column. Verdicts of several windows come in the order in which they fall due; between two of them `evidence`
        and `drift_began` tell of the one that came last."""
        released = {lateness: waiting.take(rows) for lateness, waiting in self._waiting.items()}
        streams = [_of(view, rows, released) for view in self._views]
        for judged, view in streams[0] if len(streams) == 1 else merge(*streams, key=lambda one: one[0].place):
            yield self._verdict(judged, view, rows)

    def _verdict(self, judged: Judged, view: CountView | TimeView, rows: Rows) -> Verdict:
        self._verdicts += 1
        model, version, seen, at = self.reference.model, self.reference.version, judged.seen, judged.place
        span = view.window.span(self._partition)
        due = Place(int(rows.offsets[at]), float(rows.times[at])) if isinstance(view, TimeView) else None
        more = (view.name, view.segment, judged.boundary)
        only = more == ("", "", None)
        id_ = deterministic_id("verdict", model, version, span.partition, span.last_offset, seen, *(() if only else more))
        self.last = Verdict(id_, model, version, self._verdicts, seen, span, judged.findings, judged.breached, view.name, view.segment, due)
        return self.last

    def drift_began(self, verdict: Verdict) -> Span:
        """Where the drift of the newest verdict most likely began, to its window's end."""
        return self._view_of(verdict).began(verdict)

    def evidence(self) -> dict[str, tuple[Any, ...]]:
        """The window of the newest verdict by column as plain values."""
        return (self._view_of(self.last) if self.last else self._views[0]).window.evidence()

    def explained(self, decision: Decision) -> Decision:
        """The decision with the window's evidence and what is behind it; a verdict that is of no window here is explained by itself."""
        verdict, began = decision.verdict, decision.drift_began
        view = next((view for view in self._views if (view.name, view.segment) == (verdict.of_window, verdict.segment)), None)
        told = view.explained(verdict, began) if view else explain(self.reference, None, verdict.findings, verdict.breached, began)
        return replace(decision, evidence=self.evidence(), explanation=told[0], unexplained=told[1])

    def _view_of(self, verdict: Verdict) -> CountView | TimeView:
        part = (verdict.of_window, verdict.segment)
        return next(view for view in self._views if (view.name, view.segment) == part)

    def status(self) -> list[dict[str, Any]]:
        """Each window's rows so far and now, by name and segment, as plain JSON values; and which segments are left out, and why."""
        left_out = [{"segment": segment, "left_out": reason} for segment, reason in self.left_out.items()]
        return [*(view.status() for view in self._views), *left_out]

    def state(self) -> dict[str, Any]:
        """Its memory as plain values, for `restore`; the counts are their owner's."""
        first, *more = [view.state() for view in self._views]
        return {
            "fingerprint": self._fingerprint,
            **first,
            "verdicts": self._verdicts,
            "last": _plain(self.last) if self.last else None,
            "more": more,
            "waiting": [waiting.state() for waiting in self._waiting.values()],
        }

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        """Go on from what `state` gave, on a monitor that has seen nothing yet; ValueError when it gave no such thing.

        Says what starts anew nevertheless, and why: everything, when the memory is of another window or of other limits.
        """
        known = _State.model_validate(state)
        if known.fingerprint != self._fingerprint:
            return ["the window, the limits or the columns changed"]
        told = []
        for view, memory in zip(self._views, [state, *known.more], strict=True):
            told += view.restore(memory)
        for waiting, memory in zip(self._waiting.values(), known.waiting, strict=True):
            waiting.restore(memory)
        self._verdicts, self.last = known.verdicts, known.last
        return told


def _of(
    view: CountView | TimeView, rows: Rows, released: Mapping[Lateness, Sequence[Released]]
) -> Iterator[tuple[Judged, CountView | TimeView]]:
    """What the view says of these rows, with itself."""
    return ((judged, view) for judged in (view.take(released[view.lateness]) if isinstance(view, TimeView) else view.take(rows)))


def _plain(verdict: Verdict) -> dict[str, Any]:
    due = list(verdict.due) if verdict.due else None
    findings = [finding._asdict() for finding in verdict.findings]
    return {**asdict(verdict), "findings": findings, "breached": list(verdict.breached), "due": due}


def _fingerprint(spec: MonitorSpec, reference: Reference, segments: Sequence[Segment]) -> str:
    """The same in every process for the same windows, limits, segments and columns, and for no others."""
    columns = [(column.name, column.kind) for column in reference.columns]
    first, *more = spec.views
    others = [first.name, [(view.name, *view.fingerprint) for view in more], [segment.name for segment in segments]]
    told = (*first.fingerprint, columns, *([others] if any(others) else []))
    return blake2b(repr(told).encode(), digest_size=16).hexdigest()
