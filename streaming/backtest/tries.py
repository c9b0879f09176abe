"""Tried settings: every combination of what --try names, checked by the settings' own code; which of them are best, and one to take."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from math import inf, prod
from typing import Any

import yaml
from pydantic import ValidationError

from inference.errors import SettingsError
from streaming.settings import ModelSettings

MOST = 64
"""Combinations that are tried at once."""
_PARTS = ("window", "windows", "governor", "limit", "limits")
_USAGE = "write PATH=VALUE,VALUE; PATH=VALUE, for example 'window.size=500,1000; limit.false_alarms=1 per 7d,1 per 30d'"
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0}
_DAYS = 30.0
_EVENTS = 100_000.0


@dataclass(frozen=True)
class Setting:
    """One combination: what is set where, and every model's settings with it. The first of all is the configuration itself."""

    values: Mapping[str, Any]
    models: Mapping[str, ModelSettings]
    documents: Mapping[str, Any] = field(default_factory=dict)

    @property
    def baseline(self) -> bool:
        return not self.values

    @property
    def label(self) -> str:
        return "; ".join(f"{path}={value}" for path, value in self.values.items()) or "as configured"


def settings_tried(text: str, models: Mapping[str, ModelSettings]) -> list[Setting]:
    """The configuration, and behind it every combination of the values in `text`; SettingsError tells all that is wrong."""
    documents = {name: document(model) for name, model in models.items()}
    found = [Setting({}, models, documents)]
    axes = _axes(text)
    count = prod(len(values) for values in axes.values())
    if count > MOST:
        told = " x ".join(str(len(values)) for values in axes.values())
        raise SettingsError([f"--try: {told} are {count} combinations; at most {MOST} are tried at once: leave some values out"])
    problems: dict[str, None] = {}
    for combination in product(*axes.values()) if axes else ():
        chosen = dict(zip(axes, combination, strict=True))
        changed: dict[str, Any] = {}
        checked: dict[str, ModelSettings] = {}
        for name, plain in documents.items():
            try:
                changed[name] = _changed(plain, chosen)
                checked[name] = ModelSettings.model_validate(changed[name])
            except ValidationError as error:
                problems.setdefault(f"--try {Setting(chosen, {}).label}: {name}: {_told(error)}")
            except ValueError as error:
                # A path that leads nowhere does so in all combinations.
                problems.setdefault(f"--try {error}")
        found.append(Setting(chosen, checked, changed))
    if problems:
        raise SettingsError([*problems])
    return found


def document(settings: ModelSettings) -> dict[str, Any]:
    """What a configuration file says to get these settings: what was set, in the file's own words."""
    plain: dict[str, Any] = settings.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if settings.windows is None:
        plain.setdefault("window", {})
    limits = []
    for limit in settings.limits:
        told = {"kind": limit.kind, **limit.model_dump(mode="json", by_alias=True, exclude_unset=True)}
        budget = getattr(limit, "false_alarms", None)
        if budget is not None:
            told["false_alarms"] = _budget_text(budget.events, budget.seconds)
        limits.append(told)
    return {**plain, "limits": limits}


def _budget_text(events: float | None, seconds: float | None) -> str:
    if events is not None:
        return f"1 per {events:.15g} events"
    unit, length = next(((unit, length) for unit, length in _UNITS.items() if (seconds or 0.0) % length == 0.0), ("s", 1.0))
    return f"1 per {(seconds or 0.0) / length:.15g}{unit}"


def _axes(text: str) -> dict[str, list[Any]]:
    axes: dict[str, list[Any]] = {}
    problems = []
    for part in [part.strip() for part in text.split(";") if part.strip()]:
        path, sign, told = part.partition("=")
        path, values = path.strip(), [value.strip() for value in told.split(",")]
        if not sign or not path or not all(values):
            problems.append(f"--try {part!r}: {_USAGE}")
        elif path.partition(".")[0] not in _PARTS or "." not in path:
            problems.append(f"--try {path}: what can be tried begins with window., windows.NAME., governor. or limit.")
        elif path in axes:
            problems.append(f"--try {path}: it stands there twice; give all of its values at once")
        else:
            # As YAML would read them: numbers are numbers.
            axes[path] = list(dict.fromkeys(_scalar(value, part) for value in values))
    if problems:
        raise SettingsError(problems)
    return axes


def _scalar(text: str, part: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, dict | list):
        raise SettingsError([f"--try {part!r}: {text!r} is no single value; {_USAGE}"])
    return value


def _changed(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The model's part of a configuration with these values in it; ValueError when a path leads nowhere."""
    changed = deepcopy(dict(settings))
    for path, value in values.items():
        first, *steps = path.split(".")
        if first in ("limit", "limits"):
            place, steps = _limit(path, steps, changed["limits"])
        elif first == "windows":
            named = changed.get("windows") or {}
            if not steps or steps[0] not in named:
                there = f"there is {', '.join(named)}" if named else "there is only `window`"
                raise ValueError(f"{path}: no such window; {there}")
            place, steps = named[steps[0]], steps[1:]
        else:
            place = changed.setdefault(first, {})
        if len(steps) != 1 and not (first in ("limit", "limits") and steps[:1] == ["detector"] and len(steps) == 2):
            raise ValueError(f"{path}: it leads to no single setting")
        for step in steps[:-1]:
            place = place.setdefault(step, {})
        place[steps[-1]] = value
    return changed


def _limit(path: str, steps: Sequence[str], limits: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The limit that the path names, the only one where it names none, and what of the path is left."""
    names = [ModelSettings.model_validate({"limits": [limit]}).limits[0].label for limit in _nowhere(limits)]
    told = ".".join(steps)
    for name, limit in zip(names, limits, strict=True):
        if told.startswith(f"{name}."):
            return limit, told.removeprefix(f"{name}.").split(".")
    if len(limits) == 1 and steps:
        return limits[0], list(steps)
    fitting = [limit for limit in limits if len(steps) == 1 and steps[0] == "false_alarms" and "false_alarms" in limit]
    if len(fitting) == 1:
        return fitting[0], list(steps)
    raise ValueError(f"{path}: there are the limits {', '.join(names)}; write limit.NAME.SETTING")


def _nowhere(limits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The limits without the windows that they are for: those are the model's, and here is none."""
    return [{name: value for name, value in limit.items() if name != "windows"} for limit in limits]


def _told(error: ValidationError) -> str:
    problems = error.errors(include_input=False, include_url=False)
    said = [(".".join(map(str, one["loc"])), str(one["msg"]).removeprefix("Value error, ")) for one in problems]
    return "; ".join(f"{place}: {what}" if place else what for place, what in said)


# Which are best


@dataclass(frozen=True, slots=True)
class Figures:
    """What one setting did: false alarms, in so many days and rows of quiet traffic; known drifts missed, and the delay of each found."""

    false_alarms: int
    days: float
    rows: int
    missed: int
    delays: tuple[int, ...]

    @property
    def median_delay(self) -> float:
        """In rows, over all known drifts; one that was missed is later than any delay."""
        delays = sorted([*map(float, self.delays), *[inf] * self.missed])
        if not delays:
            return inf
        middle = len(delays) // 2
        # Between a delay and none is none.
        return delays[middle] if len(delays) % 2 else (delays[middle - 1] + delays[middle]) / 2.0

    @property
    def per_100k(self) -> float:
        return self.false_alarms / self.rows * _EVENTS if self.rows else 0.0

    @property
    def per_30d(self) -> float | None:
        return self.false_alarms / self.days * _DAYS if self.days > 0.0 else None

    @property
    def known(self) -> int:
        return self.missed + len(self.delays)

    @property
    def allowed(self) -> bool:
        """Whether it cries wolf at most once in 30 days, or in 100,000 rows where there are no days; once is borne in any stretch."""
        bound = self.days / _DAYS if self.days > 0.0 else self.rows / _EVENTS
        return self.false_alarms <= max(1.0, bound)


def pareto(all_figures: Sequence[Figures]) -> list[bool]:
    """Which are on the front of false alarms against delay: no other is better in one and at least as good in both."""

    def both(figures: Figures) -> tuple[float, float]:
        return figures.per_100k, figures.median_delay

    points = [both(figures) for figures in all_figures]
    return [
        figures.known > 0 and not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
        for figures, point in zip(all_figures, points, strict=True)
    ]


def proposed(all_figures: Sequence[Figures]) -> tuple[int, str] | None:
    """The setting to take, by its place, and why; None where nothing is known that could be found."""
    front = [place for place, on in enumerate(pareto(all_figures)) if on]
    if not front:
        return None
    allowed = [place for place in front if all_figures[place].allowed]
    if allowed:
        best = min(allowed, key=lambda place: _missing_least(all_figures[place]))
        rule = "of the settings on the front with at most one false alarm in 30 days (in 100,000 rows where there are no times)"
        return best, f"{rule}, it misses the fewest known drifts, and sees them soonest: {_said(all_figures[best])}"
    best = min(front, key=lambda place: _crying_least(all_figures[place]))
    rule = "every setting on the front cries wolf more often than once in 30 days (in 100,000 rows where there are no times)"
    return best, f"{rule}; this one does so least: {_said(all_figures[best])}"


def _missing_least(figures: Figures) -> tuple[float, ...]:
    return figures.missed, figures.median_delay, figures.false_alarms


def _crying_least(figures: Figures) -> tuple[float, ...]:
    return figures.per_100k, figures.missed, figures.median_delay


def _said(figures: Figures) -> str:
    delay = f"a median delay of {figures.median_delay:,.0f} rows" if figures.median_delay < inf else "no median delay, it misses too many"
    alarms = f"{figures.false_alarms} false alarm{'' if figures.false_alarms == 1 else 's'}"
    return f"{len(figures.delays)} of {figures.known} known drifts found, {delay}, {alarms} in {figures.rows:,} quiet rows"


def fragment(setting: Setting) -> str:
    """The setting as a part of a configuration file that can be pasted; `driftloop check` accepts it by itself."""
    models = {name: _short(model) for name, model in setting.documents.items()}
    return yaml.safe_dump({"models": models}, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


def _short(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in model.items() if part != {}}
