"""How soon a change is seen and how often there is none: each policy on each stream, next to what the default must reach.

A false trigger is one on a stream that has not changed; after a trigger, others within 1,000 events don't count. A change is found by
the first trigger after it, within its horizon. The figures depend on the seeds alone, not on the machine or the number of processes.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any

from scipy.special import gammainc

from inference.errors import SettingsError
from streaming.bench.policies import GROUPS, Group
from streaming.bench.printed import aligned, as_text, machine
from streaming.bench.streams import CHANGED, QUIET, Changed, Quiet, drawn, part, reference_of, rows_of

_log = logging.getLogger(__name__)

EVENTS = 100_000
_SILENCE = 1_000
_PIECE = 1_000
_PER = 100_000
_CRIES_WOLF = 10.0
"""False triggers per 100,000 events from which on a policy's delays say nothing."""
_UNLIKELY = 0.05


@dataclass(frozen=True, slots=True)
class Task:
    """One group of policies on one stream with one seed."""

    stream: str
    group: str
    seed: int
    events: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy did: false triggers, and in how many quiet events; the delay in events, None when it found nothing."""

    task: Task
    policy: str
    false: int
    events: int
    delay: int | None = None


def run(seeds: int = 5, *, only: str = "", policies: Sequence[str] = (), events: int = EVENTS, workers: int = 1) -> dict[str, Any]:
    """All of it as JSON values. `only`: streams with this text in their name. `policies`: these groups (see `GROUPS`), () for all.

    SettingsError when no stream or policy has such a name, or a number is below 1.
    """
    tasks = _tasks(seeds, only, policies, events, workers)
    started = time.monotonic()
    outcomes: list[Outcome] = []
    for count, (task, got) in enumerate(_all(tasks, workers), 1):
        _log.info("%d of %d: %s, %s, seed %d", count, len(tasks), task.stream, task.group, task.seed)
        outcomes += got
    outcomes.sort(key=lambda one: one.task.seed)
    quiet = [_of_quiet(stream, outcomes) for stream in QUIET if any(one.task.stream == stream.name for one in outcomes)]
    rates = {(one["stream"], policy): figures["per_100k"] for one in quiet for policy, figures in one["policies"].items()}
    changes = [_of_change(stream, outcomes, rates) for stream in CHANGED if any(one.task.stream == stream.name for one in outcomes)]
    told = {name: text for group in GROUPS.values() for name, text in zip(group.policies, group.told, strict=True)}
    used = {one.policy for one in outcomes}
    return {
        "seeds": seeds,
        "events": events,
        "policies": {name: text for name, text in told.items() if name in used},
        "quiet": quiet,
        "changes": changes,
        "seconds": round(time.monotonic() - started, 1),
        "machine": machine(),
    }


def _tasks(seeds: int, only: str, policies: Sequence[str], events: int, workers: int) -> list[Task]:
    low = [
        f"{name} must be at least 1, not {value}"
        for name, value in (("seeds", seeds), ("events", events), ("workers", workers))
        if value < 1
    ]
    unknown = [f"no policy {name!r}; there are {', '.join(GROUPS)}" for name in policies if name not in GROUPS]
    streams = [stream for stream in (*QUIET, *CHANGED) if only.lower() in stream.name.lower()]
    if not streams:
        low.append(f"no stream has {only!r} in its name; there are: {'; '.join(stream.name for stream in (*QUIET, *CHANGED))}")
    if low or unknown:
        raise SettingsError([*low, *unknown])
    # The slowest first, so that no process is left with them at the end.
    chosen = [name for name in reversed(GROUPS) if not policies or name in policies]
    return [
        Task(stream.name, name, seed, events)
        for name in chosen
        for seed in range(1, min(seeds, GROUPS[name].seeds) + 1)
        for stream in sorted(streams, key=lambda stream: -stream.reference)
    ]


def _all(tasks: Sequence[Task], workers: int) -> Iterable[tuple[Task, list[Outcome]]]:
    if workers == 1:
        yield from ((task, watch(task)) for task in tasks)
        return
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        running = {pool.submit(watch, task): task for task in tasks}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def watch(task: Task) -> list[Outcome]:
    """Do one task, in whatever process."""
    stream = next(one for one in (*QUIET, *CHANGED) if one.name == task.stream)
    group = GROUPS[task.group]
    return _quiet(stream, group, task) if isinstance(stream, Quiet) else _changed(stream, group, task)


def _quiet(stream: Quiet, group: Group, task: Task) -> list[Outcome]:
    events = min(task.events, group.events)
    columns, _ = drawn(stream.name, stream.law, stream.reference + events, task.seed)
    reference = reference_of(part(columns, 0, stream.reference))
    rows = rows_of(reference, part(columns, stream.reference, stream.reference + events))
    watcher = group.watcher(reference)
    found: dict[str, list[int]] = {name: [] for name in group.policies}
    for start in range(0, events, _PIECE):
        for name, triggers in watcher.take(rows.part(start, min(events, start + _PIECE))).items():
            found[name] += triggers
    return [Outcome(task, name, counted(triggers), events) for name, triggers in found.items()]


def _changed(stream: Changed, group: Group, task: Task) -> list[Outcome]:
    at, after = group.before, min(stream.horizon, group.after)
    total = at + after
    columns, rng = drawn(stream.name, stream.law, stream.reference + total, task.seed)
    reference = reference_of(part(columns, 0, stream.reference))
    quiet = rows_of(reference, part(columns, stream.reference, stream.reference + at))
    later = part(columns, stream.reference + at, stream.reference + total)
    stream.change(rng, later)
    changed = rows_of(reference, later)
    watcher = group.watcher(reference)
    before = watcher.take(quiet)
    first: dict[str, int] = {}
    for start in range(0, after, _PIECE):
        for name, triggers in watcher.take(changed.part(start, min(after, start + _PIECE))).items():
            if triggers:
                first.setdefault(name, triggers[0] - at)
        if len(first) == len(group.policies):
            break
    return [Outcome(task, name, counted(before[name]), at, first.get(name)) for name in group.policies]


def counted(triggers: Iterable[int]) -> int:
    """How many triggers (rows, ascending) count: none within 1,000 events of one that does."""
    count, last = 0, -_SILENCE
    for row in triggers:
        if row >= last + _SILENCE:
            count, last = count + 1, row
    return count


# Results


def _of_quiet(stream: Quiet, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    figures = {}
    for policy, own in _by_policy(stream.name, outcomes).items():
        false, events = sum(one.false for one in own), sum(one.events for one in own)
        figures[policy] = {
            "false": false,
            "events": events,
            "seeds": len(own),
            "per_100k": round(false * _PER / events, 3),
            "reached": not _too_many(false, stream.at_most * events / _PER),
        }
    return {"stream": stream.name, "reference": stream.reference, "at_most": stream.at_most, "policies": figures}


def _too_many(count: int, expected: float) -> bool:
    """Whether so many or more are unlikely where so many are expected: Poisson."""
    return count > expected and float(gammainc(count, expected)) < _UNLIKELY


def _of_change(stream: Changed, outcomes: Sequence[Outcome], rates: dict[tuple[str, str], float]) -> dict[str, Any]:
    figures = {}
    for policy, own in _by_policy(stream.name, outcomes).items():
        delays = [one.delay for one in own]
        found = [delay for delay in delays if delay is not None]
        # Not found is later than any delay.
        middle = median([float("inf") if delay is None else float(delay) for delay in delays])
        rate = rates.get((stream.quiet, policy))
        figures[policy] = {
            "delays": delays,
            "found": len(found),
            "seeds": len(own),
            "share_found": round(len(found) / len(own), 3),
            "median_delay": None if middle == float("inf") else middle,
            "false_before": sum(one.false for one in own),
            "cries_wolf": None if rate is None else rate >= _CRIES_WOLF,
            "reached": len(found) == len(own) and middle <= stream.within,
        }
    return {"stream": stream.name, "reference": stream.reference, "within": stream.within, "quiet": stream.quiet, "policies": figures}


def _by_policy(stream: str, outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {name: [] for group in GROUPS.values() for name in group.policies}
    for one in outcomes:
        if one.task.stream == stream:
            found[one.policy].append(one)
    return {name: own for name, own in found.items() if own}


def table(result: dict[str, Any]) -> str:
    """What `run` gave, for people."""
    policies = [*result["policies"]]
    parts = []
    if result["quiet"]:
        rows = [["false triggers per 100,000 quiet events", "target", *policies]]
        for one in result["quiet"]:
            rows.append([one["stream"], f"<= {one['at_most']:g}", *(_rate(name, one["policies"].get(name)) for name in policies)])
        parts.append(aligned(rows))
    if result["changes"]:
        rows = [["median delay in events after a change", "target", *policies]]
        for one in result["changes"]:
            rows.append([one["stream"], f"<= {one['within']:,}", *(_delay(name, one["policies"].get(name)) for name in policies)])
        parts.append(aligned(rows))
    notes = [f"{name}: {text}" for name, text in result["policies"].items()]
    notes += [
        f"{result['seeds']} seeds of {result['events']:,} quiet events"
        + "".join(f"; {name}: {seeds} of {events:,}" for name, (seeds, events) in _less(result).items()),
        "(n of m): found in n of m seeds, else in all. ! driftloop missed the target (false triggers: judged as a Poisson count). ~ cries"
        f" wolf: {_CRIES_WOLF:g} or more false triggers per 100,000 on the quiet stream of this law, so that its delay says nothing.",
        f"{result['seconds']:,.0f} s; {as_text(result['machine'])}",
    ]
    return "\n\n".join([*parts, "\n".join(notes)])


def _less(result: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Seeds and quiet events of the policies that got fewer of them."""
    less: dict[str, tuple[int, int]] = {}
    for group in GROUPS.values():
        seeds, events = min(result["seeds"], group.seeds), min(result["events"], group.events)
        if (seeds, events) != (result["seeds"], result["events"]):
            less |= {name: (seeds, events) for name in group.policies if name in result["policies"]}
    return less


def _rate(policy: str, figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "-"
    return f"{figures['per_100k']:.1f}{_mark(policy, figures)}"


def _delay(policy: str, figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "-"
    if not figures["found"]:
        return f"never{_mark(policy, figures)}"
    middle = "never" if figures["median_delay"] is None else f"{figures['median_delay']:,.0f}"
    share = "" if figures["found"] == figures["seeds"] else f" ({figures['found']} of {figures['seeds']})"
    return f"{'~' if figures['cries_wolf'] else ''}{middle}{share}{_mark(policy, figures)}"


def _mark(policy: str, figures: dict[str, Any]) -> str:
    return "!" if policy == "driftloop" and not figures["reached"] else ""
