"""Slack: one message when a model drifts and one for what came of it, as Block Kit, to an incoming webhook."""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import SecretStr
from slack_sdk.webhook import WebhookClient

from inference.errors import ActionError, SettingsError
from streaming.actions.answers import answered
from streaming.actions.explained import change_text, feature_texts, moment, ranked
from streaming.actions.outbox import Entry, Result
from streaming.core.statistics import P_VALUES

MAX_TEXT = 3000
"""Slack's bound on a section's text; it takes 50 blocks and 150 characters in a header, and cuts no text by itself: it answers 400."""
MAX_HEADER = 150
MAX_FEATURES = 8

_WHAT = {
    "": "no longer sees what it was trained on.",
    "errors": "is wrong more often, as its labels show.",
    "schema": "gets payloads that it cannot read.",
}
"""What a model's drift is, by the window that its verdict is of."""
_NAME = 120
_REASON = 500
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_KNOWN_ANSWER = re.compile(r"[a-z_]{1,60}")


class Message(NamedTuple):
    """A Slack message: `text` for notifications and old clients, `blocks` for the rest. Within Slack's bounds by construction:
    each part of a text is cut on its own, and there are only so many parts, so no link or entity is cut in the middle."""

    text: str
    blocks: list[dict[str, Any]]

    def payload(self) -> dict[str, Any]:
        """As an outbox entry's payload."""
        return {"text": self.text, "blocks": self.blocks}


def plain(value: object, limit: int = _NAME) -> str:
    """Text from outside made safe for Slack's mrkdwn: one line, `&<>` escaped (so no mention and no link can be slipped in), at
    most `limit` characters after escaping, cut with an ellipsis and never inside an entity."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    escaped = [_ENTITIES.get(c, c) for c in line]
    if sum(map(len, escaped)) <= limit:
        return "".join(escaped)
    kept, length = [], 1
    for piece in escaped:
        length += len(piece)
        if length > limit:
            break
        kept.append(piece)
    return "".join(kept) + "…"


def drift_message(decision: Mapping[str, Any], links: Mapping[str, str] | None = None) -> Message:
    """The message for a decision (`Decision.as_dict()`, or its JSON read back); `links` are places to look, by label.

    Which model and version; the features that drift by their share in the verdict, from what to what, which way and since when, with their
    scores against their limits; what was started or why not.
    """
    verdict = decision["verdict"]
    name = f"{plain(verdict['model'])} version {plain(verdict['version'], 40)}"
    if decision["action"] == "retrain":
        started = f"Retraining started: run {_code(decision['run_id'])}. {plain(decision['reason'], _REASON)}"
    else:
        started = f"No retraining started: {plain(decision['reason'], _REASON)}"
    lines = (
        [*_ranked_lines(decision), *_unknown_lines(verdict["findings"])] if decision.get("ranking") else _feature_lines(verdict["findings"])
    )
    blocks = [
        _header(f"Drift in {verdict['model']}, version {verdict['version']}"),
        _section([f"*{name}* {_WHAT.get(verdict['of_window'], _WHAT[''])}", _limits(verdict["breached"]), started]),
        _section(["*What changed, worst first*", *lines]),
        _section([f"*Since when*\n{_since(decision['drift_began'], verdict)}"]),
        _context([f"incident {_code(decision['incident'])}", *_links(links or {})]),
    ]
    first = "".join(f" {plain(text, 280)}." for text in feature_texts(decision, 1)[:1])
    return Message(f"Drift in {name}. {started}{first}", blocks)


def outcome_message(finished: Mapping[str, Any], links: Mapping[str, str] | None = None) -> Message:
    """The message for the body of an `io.driftloop.retraining.finished` event: promoted, kept or failed, with both scores."""
    model = plain(finished["model"])
    version = plain(finished.get("version") or "", 40)
    reason = plain(finished.get("reason") or "", _REASON)
    scores = _scores(finished)
    match finished["outcome"]:
        case "promoted":
            title, told = f"New version of {finished['model']} is live", f"*{model}* version {version} is live now."
        case "kept":
            title, told = (
                f"{finished['model']} keeps its version",
                f"*{model}* keeps its version: the challenger is not better by the margin.",
            )
        case _:
            title, told = f"Retraining {finished['model']} failed", f"The retraining of *{model}* failed. The version in place stays live."
    blocks = [
        _header(title),
        _section([told, *([scores] if scores else []), *([reason] if reason else [])]),
        _context([f"run {_code(finished['run_id'])}", *_links(links or {})]),
    ]
    return Message(" ".join(part for part in (told.replace("*", ""), scores, reason) if part), blocks)


class Slack:
    """Performs entries of kind "slack" (payload: `Message.payload()`). The URL is a secret and is in no log, repr or error.

    Slack itself knows no idempotency key, so a crash between the answer and the note shows a message twice. The key is sent
    all the same, for receivers that stand in for Slack.
    """

    def __init__(self, url: SecretStr, *, timeout: int = 10) -> None:
        if urlsplit(url.get_secret_value()).scheme not in ("http", "https"):
            raise SettingsError(["the Slack webhook must be an http(s) URL, as Slack shows it when the webhook is made"])
        # slack_sdk logs the URL at DEBUG and errors at ERROR: it gets a logger of its own that leads nowhere.
        silent = logging.Logger("slack", level=logging.CRITICAL + 1)
        self._timeout = timeout
        self._client = WebhookClient(url.get_secret_value(), timeout=timeout, logger=silent, retry_handlers=[])
        # The SDK's own proxy lookup knows no NO_PROXY; without it urllib does the lookup, and does.
        self._client.proxy = None

    def __call__(self, entry: Entry) -> Result:
        text, blocks = entry.payload["text"], entry.payload["blocks"]
        problem, status, body, retry_after = "", 0, "", None
        try:
            response = self._client.send(text=text, blocks=blocks, headers={"Idempotency-Key": entry.key})
            status, body, retry_after = response.status_code, response.body, response.headers.get("Retry-After")
        except Exception as error:  # noqa: BLE001 - any of them may name the URL, so none may get through
            problem = _told(error, self._timeout)
        if problem:
            # Raised out here, because an exception of urllib's may name the URL and would hang on to ours as its context.
            raise ActionError(f"Slack cannot be reached: {problem}", retry=True)
        said = f"it says {body!r}; " if _KNOWN_ANSWER.fullmatch(body) else ""
        return answered("Slack", status, retry_after, advice=f"{said}check the webhook's URL, or make a new one")


def _told(error: Exception, timeout: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"no answer within {timeout} s"
    return (isinstance(reason, OSError) and reason.strerror) or type(reason).__name__


def _ranked_lines(decision: Mapping[str, Any]) -> list[str]:
    """The features by their share in the verdict. Each part of a line is cut, so that eight of them and what follows fit a section."""
    near, features = decision["verdict"]["window"]["last_time"], ranked(decision)
    lines = []
    for one in features[:MAX_FEATURES]:
        told = plain(change_text(one, moment(one["since"]["time"], near)), 160)
        lines.append(f"• *{plain(one['feature'], 80)}*: {told} ({_score(one, 20)})")
    more = len(features) - MAX_FEATURES
    if more > 0 or decision["unexplained"]:
        lines.append(f"and {max(more, 0) + decision['unexplained']} more")
    return [*lines, *_unknown_lines(decision["verdict"]["findings"])]


def _feature_lines(findings: Iterable[Mapping[str, Any]]) -> list[str]:
    findings = list(findings)
    drifting = sorted((finding for finding in findings if finding["over"]), key=_severity, reverse=True)
    lines = [_feature_line(finding) for finding in drifting[:MAX_FEATURES]]
    if len(drifting) > MAX_FEATURES:
        lines.append(f"and {len(drifting) - MAX_FEATURES} more")
    return [*lines, *_unknown_lines(findings)] or ["no single feature"]


def _unknown_lines(findings: Iterable[Mapping[str, Any]]) -> list[str]:
    unknown = [finding for finding in findings if finding["unknown"]]
    if not unknown:
        return []
    first = unknown[0]
    more = f", and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    return [f"Could not be judged: {plain(first['feature'])} ({plain(first['unknown'], 200)}){more}"]


def _feature_line(finding: Mapping[str, Any]) -> str:
    return f"• *{plain(finding['feature'])}*: {_score(finding, 40)}"


def _score(finding: Mapping[str, Any], limit: int) -> str:
    letter = " p" if finding["test"] in P_VALUES else ""
    return f"{plain(finding['test'], limit)}{letter} = {_number(finding['score'])}, limit {_number(finding['threshold'])}"


def _severity(finding: Mapping[str, Any]) -> float:
    """How far beyond its limit, in powers of e; p-values count downwards."""
    score, threshold = finding["score"], finding["threshold"]
    if not score or not threshold or score < 0 or threshold < 0:
        return math.inf if finding["test"] in P_VALUES and score == 0 else 0.0
    beyond = math.log(score) - math.log(threshold)
    return -beyond if finding["test"] in P_VALUES else beyond


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "unknown"
    mantissa, separator, exponent = f"{value:.2g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if separator else mantissa


def _limits(breached: Iterable[str]) -> str:
    names = [plain(name, 60) for name in breached]
    shown = ", ".join(names[:MAX_FEATURES]) + (f" and {len(names) - MAX_FEATURES} more" if len(names) > MAX_FEATURES else "")
    return f"Over the limit: {shown or 'none'}."


def _since(began: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    events = began["last_offset"] - began["first_offset"] + 1
    return (
        f"{_time(began['first_time'])}, {events} events before this verdict "
        f"(partition {began['partition']}, offsets {began['first_offset']} to {began['last_offset']}). "
        f"Verdict {verdict['number']} of this version, after {verdict['predictions']} predictions, "
        f"at {_time(verdict['window']['last_time'])}."
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _scores(finished: Mapping[str, Any]) -> str:
    champion, challenger = finished.get("champion"), finished.get("challenger")
    if champion is None and challenger is None:
        return ""
    metric = plain(finished.get("metric") or "score", 60)
    shown = [f"{who} {value:.4g}" for who, value in (("challenger", challenger), ("champion", champion)) if value is not None]
    margin = finished.get("margin")
    needed = f"; at least {margin:g} better was asked for" if margin is not None else ""
    rows = finished.get("rows")
    return f"{metric}: {', '.join(shown)}{f', on {plain(rows, 20)} labelled predictions' if rows else ''}{needed}."


def _links(links: Mapping[str, str]) -> list[str]:
    shown = []
    for label, place in list(links.items())[:4]:
        if place.startswith(("http://", "https://")) and len(place) <= 500 and not re.search(r"[\s<>|]", place):
            shown.append(f"<{place.replace('&', '&amp;')}|{plain(label, 60).replace('|', '/')}>")
        else:
            shown.append(f"{plain(label, 60)} {_code(place, 300)}")
    return shown


def _code(value: object, limit: int = _NAME) -> str:
    return f"`{plain(str(value).replace('`', chr(39)), limit)}`"


def _header(title: str) -> dict[str, Any]:
    return {"type": "header", "text": {"type": "plain_text", "text": plain(title, MAX_HEADER)}}


def _section(lines: list[str]) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": "\n".join(lines)}}


def _context(parts: list[str]) -> dict[str, Any]:
    return {"type": "context", "elements": [{"type": "mrkdwn", "text": part} for part in parts]}
