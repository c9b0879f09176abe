"""Times as RFC 3339 text that give back the very same number: seconds since 1970 as the log keeps them."""

import re
from datetime import UTC, datetime
from decimal import Decimal

_EPOCH = datetime.fromtimestamp(0, UTC)
_SECOND = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d")
_MAX_KNOWN = 10_000
_known: dict[str, str] = {}
"""Whole seconds of texts up to the second: few for many records."""


def text(time: float) -> str:
    """With as many digits of a second as it takes."""
    whole, _, part = repr(float(time)).partition(".")
    if not (whole.isdigit() and part.isdigit()):
        # Too near to 1970 for plain digits, or before it, where no log has times.
        whole, _, part = f"{Decimal(repr(max(time, 0.0))):f}".partition(".")
    second = datetime.fromtimestamp(int(whole), UTC).isoformat()[:19]
    part = part.rstrip("0")
    return f"{second}.{part}Z" if part else f"{second}Z"


def seconds(text: str) -> float:
    """What `text` was given; any RFC 3339 time in UTC. ValueError: it is none."""
    second, part = text[:19], text[20:-1]
    whole = _known.get(second)
    if whole is None:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        if _SECOND.fullmatch(second) is None:
            raise ValueError(f"{text[:60]!r} is no RFC 3339 time in UTC")
        time = datetime.fromisoformat(f"{second}+00:00")
        whole = _known[second] = f"{(time - _EPOCH).total_seconds():.0f}."
    if text[19:] != "Z" and not (part.isdigit() and text[19] == "." and text[-1] == "Z"):
        raise ValueError(f"{text[:60]!r} is no RFC 3339 time in UTC")
    return float(whole + part)
