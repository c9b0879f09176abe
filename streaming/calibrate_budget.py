"""What the CUSUM behind a budget of false alarms can see of each column, for `driftloop calibrate`."""

from math import isfinite
from statistics import median
from typing import Any

from streaming.core.cusum.calibration import calibrate
from streaming.core.cusum.sensitivity import Sees, Sensitivity
from streaming.core.cusum.signals import Signals
from streaming.core.limits import BudgetLimit
from streaming.core.limits.pace import USUAL_PER_SECOND, rounded
from streaming.core.limits.seam import chosen_columns
from streaming.core.reference import Reference

WITHIN = (100, 1_000, 10_000)
_PER = 100_000
_MONTH = 30 * 86_400.0


def events_of(events: float | None, seconds: float | None, rate: float | None) -> float:
    """Rows per false alarm of a budget."""
    return events if events is not None else rounded((rate or USUAL_PER_SECOND) * (seconds or 0.0))


def false_alarms(rate: float, per_second: float | None) -> dict[str, float | None]:
    """Of so many per row."""
    return {
        "per_100k_events": three_digits(rate * _PER),
        "per_30d": None if per_second is None else three_digits(rate * per_second * _MONTH),
    }


def three_digits(number: float) -> float:
    return float(f"{number:.3g}")


def of_budget(limit: BudgetLimit, reference: Reference, rate: float | None) -> dict[str, Any]:
    indexes = [number for number, _ in chosen_columns(limit.name, reference, limit.columns, lambda column: column.rows > 0)]
    columns, codes = [reference.columns[index] for index in indexes], reference.codes[indexes]
    events = events_of(limit.events, limit.seconds, rate)
    statistics = calibrate(Signals(columns), codes, events)
    sensitivity = Sensitivity(statistics, codes)
    every = [sensitivity.sees(number, WITHIN) for number in range(len(sensitivity.every))]
    by_column: dict[str, dict[str, Any]] = {column.name: {} for column in columns}
    for sees in every:
        if len(sees.signal.columns) == 1:
            told = by_column[columns[sees.signal.columns[0]].name]
            kind = sees.signal.kind
            # Of a column's categories the one of which a change is seen last.
            if kind not in told or _size(sees, 1_000) > told[kind]["_"]:
                told[kind] = {**_smallest(sees), "_": _size(sees, 1_000)}
    pairs = [sees for sees in every if sees.signal.kind == "pair"]
    return {
        "kind": "budget",
        "false_alarms": {**false_alarms(1.0 / events, rate), "at_most": True},
        "budget_events": events,
        "statistics": len(statistics.limit),
        "columns": [
            {"column": name, "sees": {kind: {key: one for key, one in told.items() if key != "_"} for kind, told in kinds.items()}}
            for name, kinds in by_column.items()
        ],
        "pairs": {
            "count": len(pairs),
            "correlation": {str(within): _told(median(_size(pair, within) for pair in pairs)) for within in WITHIN},
        }
        if pairs
        else None,
    }


def _size(sees: Sees, within: int) -> float:
    """By how much it changes: a shift, a factor's excess, points of a share or a correlation."""
    return sees.smallest[within] - sees.before


def _smallest(sees: Sees) -> dict[str, Any]:
    return {
        "change": sees.change,
        "before": three_digits(sees.before),
        "within": {str(within): _told(size) for within, size in sees.smallest.items()},
        **({"category": sees.signal.category} if sees.signal.category else {}),
    }


def _told(number: float) -> float | None:
    return three_digits(number) if isfinite(number) else None
