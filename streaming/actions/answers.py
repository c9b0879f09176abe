"""What an HTTP answer means for an entry: done, later, another try, or given up."""

import math
from http import HTTPStatus

from inference.errors import ActionError
from streaming.actions.outbox import Done, Later, Result

_TRANSIENT = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_LONGEST_WAIT = 3600.0


def answered(receiver: str, status: int, retry_after: str | None, *, advice: str = "") -> Result:
    """What an HTTP answer means for an entry.

    2xx: done. A wait the receiver asks for (429 or 503 with Retry-After in seconds): later, and no failure. Otherwise 408,
    425, 429 and 5xx are worth another try; anything else is not (a redirect neither: it would turn the POST into a GET).
    """
    if 200 <= status < 300:
        return Done(f"{receiver} answered {status}")
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) and retry_after is not None:
        wait = _seconds(retry_after)
        if wait is not None:
            return Later(wait, f"{receiver} answered {status} and asked to wait {wait:g} s")
    if status in _TRANSIENT or status >= 500:
        raise ActionError(f"{receiver} answered {status}", retry=True)
    raise ActionError(f"{receiver} answered {status}{f'; {advice}' if advice else ''}", retry=False)


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return min(max(seconds, 1.0), _LONGEST_WAIT) if math.isfinite(seconds) else None
