"""The answer of a backtest as one object of plain JSON values, put together from what each process has to tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from inference.event import now_text
from streaming.backtest.question import Course, KnownDrift
from streaming.backtest.tally import ALARMS, Tally
from streaming.backtest.tries import Figures, Setting, fragment, pareto, proposed

_EVIDENCE = 20
_PLACES = 100
_OF_LOGS = ("promoted", "retraining_finished", "unmonitored")


@dataclass
class Ridden:
    """What one process did: `tallies` by the number of the setting (0: as configured) and by model.

    `unreadable` records of the source; `bodies` are those that the source can read, and the model's fleet cannot.
    """

    tallies: dict[int, dict[str, Tally]]
    events: int = 0
    seconds: float = 0.0
    calibration_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    unreadable: int = 0
    bodies: int = 0
    places: list[dict[str, str]] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    interrupted: bool = False


@dataclass(frozen=True)
class Asked:
    """What was asked: of which source and stretch, with which settings, injections and known drifts."""

    source: str
    since: str | None = None
    until: str | None = None
    settings: Sequence[Setting] = ()
    injected: Sequence[str] = ()
    of_log: bool = True


def result(asked: Asked, parts: Sequence[Ridden]) -> dict[str, Any]:
    """The whole answer."""
    baseline: dict[str, Tally] = {}
    for part in parts:
        for model, tally in part.tallies.get(0, {}).items():
            baseline.setdefault(model, tally)
    first, counts = parts[0], {model: told for part in parts for model, told in part.counts.items()}
    bodies = sum({tuple(part.counts): part.bodies for part in parts}.values())
    alarms, places = _alarms([*baseline.values()])
    seconds, calibration = max(part.seconds for part in parts), max(part.calibration_seconds for part in parts)
    known = [one for tally in baseline.values() for one in _known_drifts(tally, places)]
    tried, proposal = _tried(asked, parts)
    return {
        "events": first.events,
        "alarms": alarms,
        "seconds": round(seconds, 3),
        "events_per_second": round(first.events / max(first.seconds - first.calibration_seconds, 1e-6)),
        "calibration_seconds": round(calibration, 3),
        "notes": _notes(asked, parts, baseline),
        **(_sums([*baseline.values()]) if asked.of_log else {}),
        "source": asked.source,
        "since": asked.since,
        "until": asked.until,
        "span": _span([tally.course for tally in baseline.values()]),
        "unreadable": {"count": first.unreadable + bodies, "places": first.places[:_PLACES]},
        "models": [_model(tally, counts) for tally in baseline.values()],
        "decisions": _decisions([*baseline.values()]),
        "incidents": [one for tally in baseline.values() for one in tally.memory.incidents],
        "promotions": [one for tally in baseline.values() for one in tally.memory.promotions],
        "false_alarms": _false_alarms(figures([*baseline.values()])),
        "known_drifts": known,
        "missed": sum(tally.missed for tally in baseline.values()),
        **_accuracy(baseline),
        "timeline": {model: {name: part.as_dict() for name, part in tally.parts.items()} for model, tally in baseline.items()},
        "evidence": _evidence([*baseline.values()], places),
        "tried": tried,
        "proposal": proposal,
        "injected": [*asked.injected],
        "interrupted": any(part.interrupted for part in parts),
    }


def figures(tallies: Sequence[Tally]) -> Figures:
    """What one setting did, over all models: days and rows are those of every model, added up."""
    return Figures(
        sum(tally.memory.false_alarms for tally in tallies),
        sum(tally.course.quiet_days for tally in tallies),
        sum(tally.course.quiet_rows for tally in tallies),
        sum(tally.missed for tally in tallies),
        tuple([delay for tally in tallies for delay in tally.delays]),
    )


def _false_alarms(of: Figures) -> dict[str, Any]:
    per_30d = of.per_30d
    return {
        "count": of.false_alarms,
        "per_30d": None if per_30d is None else round(per_30d, 6),
        "per_100k_events": round(of.per_100k, 6),
        "days": round(of.days, 6),
        "events": of.rows,
    }


def _alarms(tallies: Sequence[Tally]) -> tuple[list[dict[str, Any]], dict[tuple[str, int], int]]:
    """All alarms in the order of their times, and the place there of each model's first, second, ..."""
    told = [
        ((one["time"] or 0.0, one["event"], tally.model, number), one)
        for tally in tallies
        for number, one in enumerate(tally.memory.alarms)
    ]
    told.sort(key=lambda one: one[0])
    return [one for _, one in told], {(key[2], key[3]): place for place, (key, _) in enumerate(told)}


def _known_drifts(tally: Tally, places: Mapping[tuple[str, int], int]) -> list[dict[str, Any]]:
    found = []
    for place, drift in enumerate(tally.course.drifts):
        alarm = tally.memory.found.get(place)
        event, time = tally.course.began(place)
        told = {
            "found": alarm is not None,
            "delay_events": alarm.event - event if alarm else None,
            "delay_seconds": round(alarm.time - time, 6) if alarm and time is not None and tally.course.timed else None,
            "alarm": places.get((tally.model, alarm.alarm)) if alarm else None,
            "injected": drift.injected,
            "happened": tally.course.happened(place),
        }
        found.append({"name": drift.name, "model": tally.model, "from": _end(drift, drift.first), "until": _end(drift, drift.last), **told})
    return found


def _end(drift: KnownDrift, at: float) -> float | int | None:
    if at == inf:
        return None
    return at if drift.timed else int(at)


def _span(courses: Sequence[Course]) -> dict[str, Any] | None:
    first = [course.first for course in courses if course.timed and course.first is not None]
    last = [course.last for course in courses if course.timed and course.last is not None]
    if not first or not last:
        return None
    ends = min(first), max(last)
    return {"first": ends[0], "last": ends[1], "first_text": now_text(ends[0]), "last_text": now_text(ends[1])}


def _model(tally: Tally, counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    own, memory = dict(counts.get(tally.model, {})), tally.memory
    return {
        "model": tally.model,
        "versions": memory.versions,
        "predictions": tally.course.rows,
        "labels": own.get("labels", 0),
        "verdicts": memory.verdicts,
        "breached": memory.breached,
        "counts": own,
    }


def _decisions(tallies: Sequence[Tally]) -> dict[str, Any]:
    holds: dict[str, int] = {}
    for tally in tallies:
        for kind, count in tally.memory.holds.items():
            holds[kind] = holds.get(kind, 0) + count
    acted = {action: sum(tally.memory.actions.get(action, 0) for tally in tallies) for action in ("retrain", "alert")}
    return {**acted, "hold": holds}


def _sums(tallies: Sequence[Tally]) -> dict[str, int]:
    """Counts by kind of outcome."""
    decisions = _decisions(tallies)
    return {
        "verdicts": sum(tally.memory.verdicts for tally in tallies),
        "breached": sum(tally.memory.breached for tally in tallies),
        "retrain": decisions["retrain"],
        "alert": decisions["alert"],
        "hold": sum(decisions["hold"].values()),
        **{name: sum(tally.memory.notices.get(name, 0) for tally in tallies) for name in _OF_LOGS},
    }


def _accuracy(baseline: Mapping[str, Tally]) -> dict[str, Any]:
    labelled = {model: tally.accuracy for model, tally in baseline.items() if tally.accuracy.points}
    falls = {model: accuracy.fall for model, accuracy in labelled.items()}
    return {
        "accuracy": {model: accuracy.points for model, accuracy in labelled.items()},
        "falls": falls,
        "alarm_before_fall": {model: fall["alarm_before"] if fall else None for model, fall in falls.items()},
    }


def _evidence(tallies: Sequence[Tally], places: Mapping[tuple[str, int], int]) -> list[dict[str, Any]]:
    told = [{**one, "alarm": places[tally.model, one["alarm"]]} for tally in tallies for one in tally.memory.evidence]
    return sorted(told, key=lambda one: one["alarm"])[:_EVIDENCE]


def _notes(asked: Asked, parts: Sequence[Ridden], baseline: Mapping[str, Tally]) -> list[str]:
    notes = [note for part in parts for note in part.notes]
    if asked.injected:
        notes.insert(0, f"this is not the past as it was: {len(asked.injected)} injection(s) were put into it")
    if any(part.interrupted for part in parts):
        notes.insert(0, "interrupted: this is what is known so far")
    for model, tally in baseline.items():
        more = tally.memory.alarm_count - ALARMS
        if more > 0:
            notes.append(f"{model}: {more} alarms more than are told one by one")
    for part in parts:
        for number, tallies in part.tallies.items():
            of = f" with {asked.settings[number].label}" if number else ""
            notes += [f"{note}{of}" for tally in tallies.values() for note in tally.memory.notes]
    return [*dict.fromkeys(notes)]


def _tried(asked: Asked, parts: Sequence[Ridden]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    if len(asked.settings) < 2:
        return [], None
    own: dict[int, dict[str, Tally]] = {}
    for part in parts:
        for number, tallies in part.tallies.items():
            for model, tally in tallies.items():
                own.setdefault(number, {}).setdefault(model, tally)
    numbers = sorted(own)
    all_figures = [figures([*own[number].values()]) for number in numbers]
    told = [
        {
            "settings": dict(asked.settings[number].values),
            "label": asked.settings[number].label,
            "false_alarms": _false_alarms(of),
            "found": len(of.delays),
            "missed": of.missed,
            "median_delay_events": None if of.median_delay == inf else of.median_delay,
            "alarms": sum(tally.memory.alarm_count for tally in own[number].values()),
            "pareto": on_front,
            "baseline": asked.settings[number].baseline,
        }
        for number, of, on_front in zip(numbers, all_figures, pareto(all_figures), strict=True)
    ]
    best = proposed(all_figures)
    if best is None:
        return told, None
    setting, why = asked.settings[numbers[best[0]]], best[1]
    kept = "what is configured is best of all that were tried: " if setting.baseline else ""
    return told, {"settings": dict(setting.values), "yaml": fragment(setting), "why": f"{kept}{why}"}
