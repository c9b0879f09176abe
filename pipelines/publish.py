"""Tell the loop what a run came to: our events, posted to the gateway or appended to the log, with time-outs and bounded retries."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from inference.errors import LogUnavailable, PipelineError
from inference.event import PROMOTED, RETRAINING_FINISHED, Event, deterministic_id, own_event, to_http
from inference.log import open_log
from inference.versions import Version

logger = logging.getLogger(__name__)

SOURCE = "driftloop/pipelines"
ATTEMPTS = 6
_FIRST_PAUSE = 0.2
_AGAIN = (408, 425, 429)


def promoted(version: Version, *, previous: str, repository: str, now: float) -> Event:
    """The event that makes the watcher take the new version's reference."""
    data = {
        "model": version.model,
        "version": version.version,
        "previous": previous,
        "run_id": version.run_id,
        "metrics": dict(version.metrics),
        "repository": repository,
    }
    # A version that is put live again later on is another promotion.
    id_ = deterministic_id("promoted", version.model, version.version, version.run_id, previous)
    return own_event(PROMOTED, data, model=version.model, source=SOURCE, id_=id_, now=now)


def finished(model: str, run_id: str, outcome: str, data: Mapping[str, Any], *, now: float) -> Event:
    """The event that says how a run ended: outcome promoted, kept or failed."""
    body = {
        "model": model,
        "run_id": run_id,
        "outcome": outcome,
        "version": "",
        "reason": "",
        "champion": None,
        "challenger": None,
        "metric": "",
        "margin": 0.0,
        "rows": 0,
        **data,
    }
    id_ = deterministic_id("finished", run_id)
    return own_event(RETRAINING_FINISHED, body, model=model, source=SOURCE, id_=id_, now=now)


def publish(
    events: Sequence[Event],
    *,
    gateway_url: str,
    log_url: str = "",
    attempts: int = ATTEMPTS,
    timeout: float = 5.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Deliver the events in order; PipelineError when that failed. With neither a gateway nor a log there is nobody to tell.

    A retry can deliver an event twice: its id is the same, so the reader sees one.
    """
    if gateway_url:
        _check(gateway_url)
        for event in events:
            _retried(lambda event=event: _post(gateway_url, event, timeout), attempts, sleep)  # type: ignore[misc]
    elif log_url:
        _retried(lambda: _append(log_url, events), attempts, sleep)
    elif events:
        logger.info("neither a gateway nor a log is given; %s is told to nobody", ", ".join(event.type for event in events))


class _Again(Exception):
    """A failure that another attempt may mend."""


def _retried(deliver: Callable[[], None], attempts: int, sleep: Callable[[float], None]) -> None:
    for attempt in range(1, attempts + 1):
        try:
            deliver()
            return
        except _Again as error:
            if attempt == attempts:
                raise PipelineError(f"{error} ({attempts} attempts)") from error
            logger.warning("%s; trying again", error)
            sleep(_FIRST_PAUSE * 2 ** (attempt - 1))


def _check(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PipelineError(f"the gateway's URL must read http://HOST:PORT, not {shown(url)!r}")


def _post(url: str, event: Event, timeout: float) -> None:
    import httpx

    headers, body = to_http(event)
    try:
        # ASCII is what HTTP headers promise; httpx would refuse anything else with its own error.
        response = httpx.post(url, headers=[(k.encode(), v.encode()) for k, v in headers], content=body, timeout=timeout)
    except httpx.TransportError as error:
        raise _Again(f"{event.type} did not reach {shown(url)}: {type(error).__name__}: {error}") from error
    if response.status_code >= 500 or response.status_code in _AGAIN:
        raise _Again(f"{shown(url)} answered {response.status_code} to {event.type}")
    if not response.is_success:
        raise PipelineError(f"{shown(url)} refused {event.type} with {response.status_code}: {response.text[:200]}")


def _append(url: str, events: Sequence[Event]) -> None:
    try:
        log = open_log(url)
        try:
            log.append(events)
        finally:
            log.close()
    except LogUnavailable as error:
        raise _Again(f"the log {url} is away: {error}") from error


def shown(url: str) -> str:
    """The URL as it may be told: without user, password and query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{host}{port}{parts.path}"
