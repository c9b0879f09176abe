"""Values that settings are made of: durations, URLs, budgets of false alarms."""

import re
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
)

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: object) -> object:
    """A duration as a number of seconds or a text such as 500ms, 30s, 10m, 2h, 7d."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", value)
        if not match:
            raise ValueError(f"{value!r} is no duration; write a number of seconds, or 500ms, 30s, 10m, 2h, 7d")
        return float(match[1]) * _UNITS[match[2]]
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL")
    return value


def _secret_url(value: SecretStr) -> SecretStr:
    _http_url(value.get_secret_value())
    return value


Seconds = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
SecretUrl = Annotated[SecretStr, AfterValidator(_secret_url)]


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s+per\s+(?:(\d+(?:\.\d+)?)\s*(k|M)?\s*events|(\d+(?:\.\d+)?)\s*(s|m|h|d))\s*")
_THOUSANDS = {None: 1.0, "k": 1e3, "M": 1e6}


@dataclass(frozen=True)
class FalseAlarms:
    """Quiet traffic between two false alarms, on average: so many events, or so many seconds of log time (the other is None)."""

    events: float | None
    seconds: float | None

    @classmethod
    def parse(cls, value: object) -> object:
        """From a text such as "1 per 30d" or "1 per 100k events"."""
        if not isinstance(value, str):
            return value
        match = _BUDGET.fullmatch(value)
        count = float(match[1]) if match else 0.0
        if not match or not count:
            raise ValueError(f"{value!r} is no budget; write for example '1 per 30d' or '1 per 100k events'")
        if match[2] is None:
            return cls(None, float(match[4]) * _UNITS[match[5]] / count)
        return cls(float(match[2]) * _THOUSANDS[match[3]] / count, None)


def _enough(value: FalseAlarms) -> FalseAlarms:
    if value.events is not None and value.events < 1000:
        raise ValueError(f"false_alarms: at least 1000 events per false alarm, not {value.events:g}")
    if value.seconds is not None and value.seconds < 60:
        raise ValueError(f"false_alarms: at least a minute per false alarm, not {value.seconds:g}s")
    return value


AlarmBudget = Annotated[FalseAlarms, BeforeValidator(FalseAlarms.parse), AfterValidator(_enough)]
