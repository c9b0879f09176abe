"""What is behind a decision, in words: per feature what moved, from what to what, which way, since when, and its share in the verdict."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

_NUMBERS = ("mean", "median", "standard deviation", "interquartile range", "rank correlation")


def ranked(decision: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a decision (`Decision.as_dict()`, or its JSON read back) the first explanation of each feature, with all of the feature's share;
    the largest share first."""
    firsts = {one["feature"]: one for one in reversed(decision.get("explanation", ()))}
    return [{**firsts[place["feature"]], "share": place["share"]} for place in decision.get("ranking", ())]


def feature_texts(decision: Mapping[str, Any], most: int = 5) -> list[str]:
    """As "petal_width: mean 1.2 -> 3.05 (up), since 14:03:10Z, 61 %" for the features with the largest share; then how many more."""
    near = decision["verdict"]["window"]["last_time"]
    told = [f"{one['feature']}: {change_text(one, moment(one['since']['time'], near))}" for one in ranked(decision)]
    more = max(len(told) - most, 0) + decision.get("unexplained", 0)
    return [*told[:most], *([f"and {more} more"] if more else [])]


def change_text(one: Mapping[str, Any], since: str) -> str:
    """As "mean 1.2 -> 3.05 (up), since 14:03:10Z, 61 %"; `since` is the moment as the reader knows moments."""
    number = _number if one["what"].startswith(_NUMBERS) else _percent
    moved = [f"{one['what']} {number(one['before'])} -> {number(one['after'])}"] if one["what"] else []
    if one["direction"] and moved:
        moved[0] += f" ({one['direction']})"
    return ", ".join([*moved, f"since {since}{' or before' if one['earlier'] else ''}", f"{100.0 * one['share']:.0f} %"])


def moment(seconds: float, near: float) -> str:
    """A time of the log as UTC, with the date where that is not the one of `near`."""
    at, other = (datetime.fromtimestamp(one, UTC) for one in (seconds, near))
    return at.strftime("%H:%M:%SZ" if at.date() == other.date() else "%Y-%m-%d %H:%M:%SZ")


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100.0 * value:.3g} %"
