"""What `driftloop calibrate` found, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from streaming.bench.printed import aligned

_HEADS = {
    "level": "shift, sd",
    "spread": "spread, x",
    "category": "a share, % points",
    "rare": "rare ones, % points",
    "unseen": "never seen, %",
    "missing": "missing, % points",
}
_MOST_LINES = 60


def as_text(report: Mapping[str, Any]) -> str:
    """The whole report: what it is about, each limit, and what is to be known of the reference."""
    parts = [_about(report)]
    parts += [_limit(limit, report) for limit in report["limits"]]
    notes = [*report["notes"], f"{report['seconds']:.1f} s"]
    return "\n\n".join([*parts, "\n".join(notes)])


def _about(report: Mapping[str, Any]) -> str:
    reference, rate = report["reference"], report["events_per_second"]
    told = f"{report['model']}, version {report['version']}: a reference of {reference['rows']:,} rows"
    if reference["periods"]:
        told += f", with a cycle of {' and of '.join(f'{period:,.0f}' for period in reference['periods'])} rows"
    told += f"; drawn in blocks of {reference['block']:,}" if reference["block"] > 1 else "; its rows do not depend on each other"
    lines = [told]
    lines.append(f"{rate:,.3g} predictions per second" if rate else "how many predictions come in a second is not known: --rate N tells it")
    if report["history"]:
        lines.append(f"measured on {report['history']['events']:,} quiet rows of {report['history']['source']}")
    return "\n".join(lines)


def _limit(limit: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    of_window = f", window {limit['window']}" if limit["window"] else ""
    lines = [f"limit {limit['name']!r} ({limit['kind']}{of_window})"]
    if "told" in limit:
        lines.append(f"  {limit['told']}")
    else:
        lines.append(f"  {_alarms(limit)}")
    if limit.get("in_history") is not None:
        count, events = limit["in_history"], report["history"]["events"]
        lines.append(f"  in the quiet rows: {count} alarm{'' if count == 1 else 's'} in {events:,}")
    if "told" not in limit and limit["kind"] == "budget":
        lines.append(_sees(limit))
    if "told" not in limit and limit["kind"] == "evidently":
        lines.append(_thresholds(limit))
    return "\n".join(lines)


def _alarms(limit: Mapping[str, Any]) -> str:
    alarms = limit["false_alarms"]
    if limit.get("alarms") == 0:
        return f"no false alarm in {limit['events']:,} quiet events that were drawn from the reference"
    month, per = alarms["per_30d"], alarms["per_100k_events"]
    rate = f"{per:g} per 100,000 events" if month is None else f"{_count(month)} times in 30 days ({per:g} per 100,000 events)"
    if alarms.get("at_most"):
        return f"false alarms: at most {rate}"
    if limit.get("calibrated"):
        return f"false alarms: about {rate} expected"
    # What was counted, and not told by a law, is a count.
    counted = f", {limit['alarms']:,} in {limit['events']:,} that were drawn" if "alarms" in limit else ""
    return f"this would cry wolf about {rate}{counted}"


def _sees(limit: Mapping[str, Any]) -> str:
    """The smallest change of each column."""
    kinds = [kind for kind in _HEADS if any(kind in column["sees"] for column in limit["columns"])]
    rows = [["  smallest change seen within 100 / 1,000 / 10,000 events", *(_HEADS[kind] for kind in kinds)]]
    for column in limit["columns"][:_MOST_LINES]:
        rows.append([f"  {column['column']}", *(_change(column["sees"].get(kind)) for kind in kinds)])
    lines = [aligned(rows)]
    if len(limit["columns"]) > _MOST_LINES:
        lines.append(f"  and {len(limit['columns']) - _MOST_LINES} columns more (--json has all)")
    if limit["pairs"]:
        sizes = " / ".join("-" if size is None else f"{size:.2g}" for size in limit["pairs"]["correlation"].values())
        count = limit["pairs"]["count"]
        lines.append(f"  correlation of two columns, the middle of {count:,} pair{'' if count == 1 else 's'}: a change by {sizes}")
    return "\n".join(lines)


def _change(sees: Mapping[str, Any] | None) -> str:
    if sees is None:
        return ""
    return " / ".join("-" if size is None else _amount(sees, size) for size in sees["within"].values())


def _amount(sees: Mapping[str, Any], size: float) -> str:
    if sees["change"] == "share":
        return f"{100.0 * (size - sees['before']):.2g}"
    return f"{size:.2f}"


def _thresholds(limit: Mapping[str, Any]) -> str:
    budget = f"{limit['budget_events']:,.0f} events"
    calibrated = limit["calibrated"]
    head = ["  column", "test", *([] if calibrated else ["threshold"]), f"holds 1 in {budget}", "shift a window sees, sd"]
    rows: list[Sequence[str]] = [head]
    for column in limit["columns"][:_MOST_LINES]:
        own = [] if calibrated else [_number(column["threshold"])]
        rows.append([f"  {column['column']}", column["test"], *own, _number(column["holding"]), _number(column["shift"])])
    lines = [aligned(rows)]
    if len(limit["columns"]) > _MOST_LINES:
        lines.append(f"  and {len(limit['columns']) - _MOST_LINES} columns more (--json has all)")
    if not calibrated:
        one = ", ".join(f"{test} {_number(score)}" for test, score in limit["holding"].items())
        lines.append(f"  one threshold that holds it on every column: {one}; `false_alarms: 1 per {budget}` gives each its own")
    return "\n".join(lines)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
