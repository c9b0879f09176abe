"""The answer of a backtest for people: known drifts, false alarms, what the governor did, tried settings, and the one to take."""

from collections.abc import Mapping, Sequence
from typing import Any

from inference.event import now_text

_ROWS = 70
"""Rows of a table that are shown."""


def as_text(told: Mapping[str, Any], *, places: int = 10) -> str:
    """All of it but the alarms, which are told as they come."""
    parts = [
        _loud(told),
        [*told["notes"], *_unreadable(told, places)],
        _known(told),
        _accuracy(told),
        _tried(told),
        [_sum(told)],
    ]
    return "\n".join(line for part in parts for line in part)


def _loud(told: Mapping[str, Any]) -> list[str]:
    if not told["injected"]:
        return []
    return ["", "NOT THE PAST AS IT WAS. Put into it:", *(f"    {text}" for text in told["injected"])]


def _unreadable(told: Mapping[str, Any], most: int) -> list[str]:
    count, places = told["unreadable"]["count"], told["unreadable"]["places"][:most]
    if not count:
        return []
    more = count - len(places)
    told_places = [f"    {one['place']}: {one['reason']}" for one in places]
    return [f"{count:,} could not be read", *told_places, *([f"    and {more:,} more"] if more and places else [])]


def _known(told: Mapping[str, Any]) -> list[str]:
    if not told["known_drifts"]:
        return []
    rows = [["known drift", "model", "from", "found after", "", "by alarm"]]
    for one in told["known_drifts"]:
        alarm = told["alarms"][one["alarm"]] if one["alarm"] is not None else None
        found = f"{one['delay_events']:,} events" if one["found"] else "missed" if one["happened"] else "not in this stretch"
        late = duration_text(one["delay_seconds"]) if one["delay_seconds"] is not None else ""
        rows.append([one["name"], one["model"], moment_text(one["from"]), found, late, _alarm(alarm)])
    return ["", *table(rows)]


def _alarm(alarm: Mapping[str, Any] | None) -> str:
    if alarm is None:
        return ""
    features = [*dict.fromkeys(one["feature"] for one in alarm["findings"])]
    more = f" and {len(features) - 3} more" if len(features) > 3 else ""
    return f"{alarm['event']:,}: {', '.join(features[:3])}{more}"


def _accuracy(told: Mapping[str, Any]) -> list[str]:
    lines = []
    for model, points in told["accuracy"].items():
        known = [point["accuracy"] for point in points if point["accuracy"] is not None]
        if not known:
            continue
        told_of = f"{model}: accuracy {known[0]:.3f} at first, {known[-1]:.3f} at last, {min(known):.3f} at worst"
        fall = told["falls"].get(model)
        if fall is None:
            lines.append(f"{told_of}; it never fell for certain")
            continue
        before = fall["time"] - fall["alarm_time"] if fall["alarm_before"] else None
        alarm = "no alarm came before" if before is None else f"the first alarm came {duration_text(before)} before"
        lines.append(f"{told_of}; it fell from {fall['first']:.3f} to {fall['accuracy']:.3f} at {now_text(fall['time'])[:19]}Z, {alarm}")
    return ["", *lines] if lines else []


def _tried(told: Mapping[str, Any]) -> list[str]:
    if not told["tried"]:
        return []
    known = any(one["found"] + one["missed"] for one in told["tried"])
    rows = [["", "tried", "false alarms", "per 30 d", "per 100k", *(["found", "median delay"] if known else [])]]
    for one in told["tried"][:_ROWS]:
        false, per_30d = one["false_alarms"], one["false_alarms"]["per_30d"]
        rates = [f"{false['count']:,}", "-" if per_30d is None else f"{per_30d:.2f}", f"{false['per_100k_events']:.2f}"]
        delay = "never" if one["median_delay_events"] is None else f"{one['median_delay_events']:,.0f} events"
        found = [f"{one['found']} of {one['found'] + one['missed']}", delay] if known else []
        rows.append(["*" if one["pareto"] else "", one["label"], *rates, *found])
    lines = ["", *table(rows)]
    if known:
        lines.append("* no other has fewer false alarms and no longer delay")
    proposal = told["proposal"]
    if proposal is None:
        return [*lines, "nothing is proposed: say with --known-drifts, or --inject, what should have been found"]
    named = "; ".join(f"{path}={value}" for path, value in proposal["settings"].items()) or "what is configured"
    return [*lines, "", f"proposed: {named}", f"    {proposal['why']}", "", *proposal["yaml"].rstrip().splitlines()]


def _sum(told: Mapping[str, Any]) -> str:
    false, decisions = told["false_alarms"], told["decisions"]
    count = len(told["alarms"])
    within = f"in {false['days']:.1f} days" if false["per_30d"] is not None else f"in {false['events']:,} events"
    rate = f"{false['per_30d']:.2f} per 30 days" if false["per_30d"] is not None else f"{false['per_100k_events']:.2f} per 100,000 events"
    outside = "of no known drift" if told["known_drifts"] else "and no known drift was named"
    held = ", ".join(f"{kind} {count}" for kind, count in sorted(decisions["hold"].items()))
    return "\n".join(
        [
            "",
            f"{told['events']:,} events, {count:,} alarm{'' if count == 1 else 's'}; {false['count']:,} {outside}: {rate}, {within}",
            f"retrainings: {decisions['retrain']:,} started, {sum(decisions['hold'].values()):,} held back{f' ({held})' if held else ''};"
            f" alerts without one: {decisions['alert']:,}",
            f"{told['events_per_second']:,} events/s, {told['calibration_seconds']:.1f} s of calibration",
        ]
    )


def moment_text(at: float | int | None) -> str:
    """A row's number, or a time."""
    if at is None:
        return ""
    return f"event {at:,}" if isinstance(at, int) else f"{now_text(at)[:19]}Z"


def duration_text(seconds: float) -> str:
    """As 3.2 d, 4.0 h, 12 m or 8 s."""
    for unit, length in (("d", 86400.0), ("h", 3600.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60.0:.0f} m" if seconds >= 120.0 else f"{seconds:.0f} s"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, in columns."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
