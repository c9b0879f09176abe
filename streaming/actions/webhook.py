"""Webhook: posts a drift decision as a CloudEvent to a URL."""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from inference.errors import ActionError, SettingsError
from inference.event import DRIFT_DETECTED, own_event, to_http
from streaming.actions.answers import answered
from streaming.actions.outbox import Entry, Result
from streaming.core.verdict import Decision

_sending: ContextVar[bool] = ContextVar("sending", default=False)


def webhook_payload(decision: Decision, *, text: str) -> dict[str, Any]:
    """An entry's payload, which is the event's body: the decision, and what it says in words."""
    return {**decision.as_dict(), "text": text}


class Webhook:
    """Performs entries of kind "webhook" (payload: `webhook_payload`). The URL may hold a token: it is in no log, repr or error.

    The event's id is the decision's and its body never changes, so a receiver may drop what it has seen; the entry's key
    is sent as `Idempotency-Key` too. `timeout` bounds each of connecting, sending and waiting for the answer's head; its body is not read.
    """

    def __init__(
        self, url: SecretStr, *, timeout: float = 10.0, source: str = "driftloop", headers: Mapping[str, SecretStr] | None = None
    ) -> None:
        if urlsplit(url.get_secret_value()).scheme not in ("http", "https"):
            raise SettingsError(["the webhook must be an http(s) URL"])
        self._url = url
        self._timeout = timeout
        self._source = source
        self._headers = dict(headers or {})
        # httpx logs the URL of every request at INFO.
        logger = logging.getLogger("httpx")
        if _not_ours not in logger.filters:
            logger.addFilter(_not_ours)

    def __call__(self, entry: Entry) -> Result:
        body = entry.payload
        # The time is the entry's, not the try's: a repeat is the same event to the last byte.
        event = own_event(DRIFT_DETECTED, body, model=body["verdict"]["model"], source=self._source, id_=body["id"], now=entry.created)
        headers, data = to_http(event)
        headers.append(("Idempotency-Key", entry.key))
        headers.extend((name, value.get_secret_value()) for name, value in self._headers.items())
        # As bytes: httpx would take text for ASCII, and a model's name need not be.
        status, retry_after, problem = self._post([(name.encode(), value.encode()) for name, value in headers], data)
        if problem:
            raise ActionError(f"the webhook cannot be reached: {problem}", retry=True)
        return answered("the webhook", status, retry_after, advice="check its URL and what it accepts")

    def _post(self, headers: list[tuple[bytes, bytes]], data: bytes) -> tuple[int, str | None, str]:
        token = _sending.set(True)
        try:
            with (
                httpx.Client(timeout=self._timeout, follow_redirects=False) as client,
                client.stream("POST", self._url.get_secret_value(), headers=headers, content=data) as response,
            ):
                return response.status_code, response.headers.get("Retry-After"), ""
        except httpx.TimeoutException:
            return 0, None, f"no answer within {self._timeout:g} s"
        except Exception as error:  # noqa: BLE001 - any of them may name the URL, so none may get through
            return 0, None, _told(error)
        finally:
            _sending.reset(token)


def _told(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _not_ours(record: logging.LogRecord) -> bool:
    return not _sending.get()
