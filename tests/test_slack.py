"""Slack's messages and their delivery, against a real receiver."""

import json
import logging
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from inference.errors import ActionError, SettingsError
from inference.event import Event
from streaming.actions.outbox import Done, Entry, Later
from streaming.actions.slack import MAX_HEADER, MAX_TEXT, Message, Slack, drift_message, outcome_message, plain
from streaming.actions.worker import Policy, Worker
from streaming.core.verdict import Decision, Explanation, Finding, Moved, Place, Span, Verdict
from streaming.testing import DROP, HANG, Answer, Receiver, free_port, open_outbox, put

TOKEN = "T000-B000-secret"
PAYLOAD = Message("Drift", [{"type": "divider"}]).payload()
ENTRY = Entry("d1:slack", "slack", PAYLOAD, "default/iris", 0, created=1_800_000_010.0, next_at=0.0)


def finding(feature: str, test: str, score: float, threshold: float, over: bool = True, unknown: str = "") -> Finding:
    return Finding("drift", feature, test, score, threshold, over, unknown)


def decision(
    *findings: Finding, action: Any = "retrain", reason: str = "3 of 3 windows drift", model: str = "default/iris", version: str = "1"
) -> dict[str, Any]:
    window = Span(0, 1100, 1299, 1_800_000_000.0, 1_800_000_060.0)
    verdict = Verdict("v1", model, version, 12, 640, window, findings, ("drift",))
    run = "run-1" if action == "retrain" else ""
    return Decision("d1", action, reason, "inc-1", run, verdict, Span(0, 1180, 1299, 1_800_000_020.0, 1_800_000_060.0)).as_dict()


def texts(message: Message) -> list[str]:
    found = []
    for block in message.blocks:
        found += [block["text"]["text"]] if "text" in block else []
        found += [element["text"] for element in block.get("elements", [])]
    return found


def test_a_drift_message_tells_what_by_how_much_since_when_and_what_was_started() -> None:
    message = drift_message(
        decision(
            finding("sepal_width", "wasserstein", 0.4, 0.1),
            finding("petal_length", "ks", 2.1e-19, 1e-4),
            finding("calm", "ks", 0.7, 1e-4, over=False),
        ),
        {"report": "https://example.org/r?a=1&b=2", "folder": "/var/state/incidents/inc-1"},
    )
    header, what, features, since, *places = texts(message)
    assert header == "Drift in default/iris, version 1"
    assert "Retraining started: run `run-1`. 3 of 3 windows drift" in what
    assert "Over the limit: drift." in what
    assert features.splitlines()[1:] == ["• *petal_length*: ks p = 2.1e-19, limit 0.0001", "• *sepal_width*: wasserstein = 0.4, limit 0.1"]
    assert "2027-01-15 08:00:20 UTC, 120 events before this verdict (partition 0, offsets 1180 to 1299)" in since
    assert "after 640 predictions" in since
    assert places == ["incident `inc-1`", "<https://example.org/r?a=1&amp;b=2|report>", "folder `/var/state/incidents/inc-1`"]
    assert message.text.startswith("Drift in default/iris version 1. Retraining started")


def explained(feature: str, share: float, test: str = "ks", what: str = "mean", **more: Any) -> Explanation:
    numbers = {"score": 2.1e-19, "threshold": 1e-4, "since": Place(1180, 1_800_000_020.0), "rows": 120, "earlier": False, "limit": "drift"}
    moved = (Moved(what, 1.204, 3.05),)
    return Explanation(
        **{"feature": feature, "test": test, "signal": "", "direction": "up", "moved": moved, "share": share, **numbers, **more}
    )


def with_explanation(*explanation: Explanation, unexplained: int = 0) -> dict[str, Any]:
    findings = [finding(one.feature, one.test, one.score, one.threshold) for one in explanation]
    window = Span(0, 1100, 1299, 1_800_000_000.0, 1_800_000_060.0)
    verdict = Verdict("v1", "default/iris", "1", 12, 640, window, tuple(findings), ("drift",))
    made = Decision("d1", "retrain", "why", "inc-1", "run-1", verdict, window, {}, explanation, unexplained)
    return made.as_dict()


def test_features_are_ranked_by_their_share_with_before_and_after_and_since_when() -> None:
    made = with_explanation(
        explained("sepal_width", 0.1, "wasserstein"),
        explained("petal_width", 0.5),
        explained("petal_width", 0.11, "psi", what="median"),
        explained("<city>", 0.29, "missing", what="missing", moved=(Moved("missing", 0.0, None),), earlier=True, direction=""),
        unexplained=2,
    )
    lines = texts(drift_message(made))[2].splitlines()[1:]
    assert lines == [
        "• *petal_width*: mean 1.2 -&gt; 3.05 (up), since 08:00:20Z, 61 % (ks p = 2.1e-19, limit 0.0001)",
        "• *&lt;city&gt;*: missing 0 % -&gt; none, since 08:00:20Z or before, 29 % (missing = 2.1e-19, limit 0.0001)",
        "• *sepal_width*: mean 1.2 -&gt; 3.05 (up), since 08:00:20Z, 10 % (wasserstein = 2.1e-19, limit 0.0001)",
        "and 2 more",
    ]


def test_the_notification_names_the_first_feature() -> None:
    made = with_explanation(explained("<x>", 0.6), explained("y", 0.4))
    assert drift_message(made).text.endswith("why &lt;x&gt;: mean 1.2 -&gt; 3.05 (up), since 08:00:20Z, 60 %.")


def test_a_moment_of_another_day_has_its_date() -> None:
    made = with_explanation(explained("x", 1.0, since=Place(1, 1_800_000_020.0 - 86_400.0)))
    assert "since 2027-01-14 08:00:20Z" in texts(drift_message(made))[2]


def test_at_most_eight_features_are_explained_and_the_others_counted() -> None:
    made = with_explanation(*(explained(f"f{n}", (20 - n) / 210) for n in range(20)), unexplained=30)
    lines = texts(drift_message(made))[2].splitlines()[1:]
    assert [line.split("*")[1] for line in lines[:8]] == [f"f{n}" for n in range(8)]
    assert lines[8:] == ["and 42 more"]


def test_a_held_decision_says_why_nothing_was_started() -> None:
    message = drift_message(decision(finding("a", "ks", 1e-9, 0.05), action="hold", reason="cool-down until 12:00"))
    assert "No retraining started: cool-down until 12:00" in texts(message)[1]
    assert "run `" not in " ".join(texts(message))


def test_at_most_eight_features_are_named_the_worst_first_and_the_rest_counted() -> None:
    many = [finding(f"f{n}", "psi", 0.1 + n / 10, 0.1) for n in range(20)]
    lines = texts(drift_message(decision(*many)))[2].splitlines()[1:]
    assert [line.split("*")[1] for line in lines[:8]] == [f"f{n}" for n in range(19, 11, -1)]
    assert lines[8:] == ["and 12 more"]


def test_a_p_value_of_zero_is_the_worst_and_what_could_not_be_judged_is_said() -> None:
    findings = [
        finding("b", "ks", 1e-300, 0.05),
        finding("a", "chisquare", 0.0, 0.05),
        finding("c", "ks", float("nan"), 0.05, False, "the window has no values"),
    ]
    lines = texts(drift_message(decision(*findings)))[2].splitlines()[1:]
    assert lines == [
        "• *a*: chisquare p = 0, limit 0.05",
        "• *b*: ks p = 1e-300, limit 0.05",
        "Could not be judged: c (the window has no values)",
    ]


def test_a_decision_read_back_from_json_gives_the_same_message() -> None:
    import orjson

    made = decision(finding("a", "ks", 1e-9, 0.05), finding("c", "ks", float("nan"), 0.05, False, "no values"))
    assert drift_message(orjson.loads(orjson.dumps(made))) == drift_message(made)


def test_an_outcome_message_has_both_scores() -> None:
    finished = {
        "model": "default/iris",
        "run_id": "run-1",
        "outcome": "promoted",
        "version": "2",
        "reason": "",
        "champion": 0.61,
        "challenger": 0.973333,
        "metric": "accuracy",
        "margin": 0.01,
        "rows": 300,
    }
    header, told, run = texts(outcome_message(finished))
    assert header == "New version of default/iris is live"
    live, scores = told.splitlines()
    assert live == "*default/iris* version 2 is live now."
    assert scores == "accuracy: challenger 0.9733, champion 0.61, on 300 labelled predictions; at least 0.01 better was asked for."
    assert run == "run `run-1`"
    kept = outcome_message({**finished, "outcome": "kept", "version": ""})
    assert "keeps its version" in kept.text and "champion 0.61" in kept.text
    failed = outcome_message({**finished, "outcome": "failed", "champion": None, "challenger": None, "reason": "collect: too few labels"})
    assert "stays live" in failed.text and failed.text.endswith("collect: too few labels")


def test_nothing_from_an_event_can_mention_or_link_or_break_a_line() -> None:
    nasty = "<!channel> <https://evil|x>\n• *faked*: ok & `code`"
    message = drift_message(decision(finding(nasty, "ks", 0.0, 0.05), model=f"ns/{nasty}", version=nasty, reason=nasty), {nasty: nasty})
    for text in [message.text, *texts(message)]:
        assert "<!" not in text and "<https://evil" not in text
        assert "\n• *faked*" not in text
    assert "&lt;!channel&gt; &lt;https://evil|x&gt; • *faked*: ok &amp; `code`" in texts(message)[2]


def test_a_link_that_would_break_out_is_shown_as_text() -> None:
    for place in ("https://a|b <!channel>", "https://a>b", "javascript:alert(1)", "https://" + "a" * 600):
        shown = texts(drift_message(decision(), {"look": place}))[-1]
        assert shown.startswith("look `") and "<" not in shown


def test_many_limits_are_counted() -> None:
    made = decision()
    made["verdict"]["breached"] = [f"limit{n}" for n in range(20)]
    assert "limit7 and 12 more." in texts(drift_message(made))[1]


any_text = st.text(max_size=400) | st.text(alphabet="&<>`*\n|!@ab", max_size=4000)
outcomes = st.sampled_from(["promoted", "kept", "failed"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(any_text, any_text, st.floats(), st.booleans()), max_size=12),
    any_text,
    any_text,
    st.dictionaries(any_text, any_text, max_size=6),
)
def test_messages_keep_slacks_bounds_and_hold_only_our_own_links(rows: list[Any], name: str, reason: str, links: dict[str, str]) -> None:
    findings = [finding(feature, test, score, 0.05, over, "" if over else reason) for feature, test, score, over in rows]
    made = decision(*findings, model=name, version=name, reason=reason)
    made["verdict"]["breached"] = [feature for feature, *_ in rows]
    finished = {
        "model": name,
        "run_id": reason,
        "outcome": "kept",
        "version": name,
        "reason": reason,
        "champion": 1.0,
        "challenger": None,
        "metric": name,
    }
    explanation = [
        explained(feature, 1.0, test, what=test, score=score, moved=(Moved(test, score, None),)) for feature, test, score, _ in rows
    ]
    with_both = {**with_explanation(*explanation), "verdict": made["verdict"]}
    for message in (drift_message(made, links), drift_message(with_both, links), outcome_message(finished, links)):
        assert 0 < len(message.text) <= MAX_TEXT
        assert 0 < len(message.blocks) <= 50
        json.dumps(message.payload(), allow_nan=False)
        for block in message.blocks:
            assert block["type"] != "header" or 0 < len(block["text"]["text"]) <= MAX_HEADER
            assert len(block.get("elements", [])) <= 10
        for text in texts(message):
            assert 0 < len(text) <= MAX_TEXT
            without_links = re.sub(r"<https?://[^\s<>|]+\|[^<>|]*>", "", text)
            assert "<" not in without_links and ">" not in without_links
            assert not re.search(r"&(?!amp;|lt;|gt;)", text)


@given(any_text, st.integers(min_value=1, max_value=200))
def test_plain_text_is_one_escaped_line_within_its_limit(text: str, limit: int) -> None:
    made = plain(text, limit)
    assert len(made) <= limit
    assert "\n" not in made and "<" not in made and ">" not in made
    assert not re.search(r"&(?!amp;|lt;|gt;)", made)
    unescaped = made.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    assert unescaped == shown or (unescaped.endswith("…") and shown.startswith(unescaped[:-1]))


def slack(receiver: Receiver) -> Slack:
    return Slack(SecretStr(receiver.url(f"/services/{TOKEN}")), timeout=1)


def test_the_message_arrives_as_text_and_blocks_with_the_entrys_key() -> None:
    with Receiver() as receiver:
        assert slack(receiver)(ENTRY) == Done("Slack answered 200")
        (request,) = receiver.requests
    assert request.json() == {"text": "Drift", "blocks": [{"type": "divider"}]}
    assert request.headers["idempotency-key"] == "d1:slack"


def test_429_waits_as_long_as_slack_asks() -> None:
    with Receiver([Answer(429, {"Retry-After": "30"})]) as receiver:
        result = slack(receiver)(ENTRY)
        assert isinstance(result, Later) and result.seconds == 30.0
        assert len(receiver.requests) == 1


def test_429_then_500_then_200_is_delivered_by_the_worker_after_the_wait() -> None:
    outbox = open_outbox([])
    put(outbox, "k", "slack", ENTRY.payload, now=time.time())
    with Receiver([Answer(429, {"Retry-After": "1"}), Answer(500)]) as receiver:
        worker = Worker(outbox, {"slack": slack(receiver)}, policies={"slack": Policy(first_wait=0.01)}, poll=0.02)
        began = time.monotonic()
        worker.start()
        assert worker.drain(10.0)
        worker.stop()
        assert time.monotonic() - began >= 1.0
        assert len(receiver.requests) == 3
    assert outbox.counts() == {"slack": {"done": 1}}


def test_a_refusal_is_final_and_tells_slacks_own_word() -> None:
    with (
        Receiver([Answer(404, body=b"no_service")]) as receiver,
        pytest.raises(ActionError, match="404; it says 'no_service'; check") as caught,
    ):
        slack(receiver)(ENTRY)
    assert not caught.value.retry


def test_a_server_error_is_tried_again() -> None:
    with Receiver([Answer(503)]) as receiver, pytest.raises(ActionError, match="503") as caught:
        slack(receiver)(ENTRY)
    assert caught.value.retry


def test_a_slack_that_hangs_is_left_in_time() -> None:
    with Receiver([HANG]) as receiver:
        began = time.monotonic()
        with pytest.raises(ActionError, match="no answer within 1 s") as caught:
            slack(receiver)(ENTRY)
        assert time.monotonic() - began < 4.0
    assert caught.value.retry


def test_a_connection_that_is_dropped_is_tried_again_by_the_outbox_alone() -> None:
    with Receiver([DROP]) as receiver:
        with pytest.raises(ActionError, match="RemoteDisconnected") as caught:
            slack(receiver)(ENTRY)
        assert len(receiver.requests) == 1
    assert caught.value.retry


@pytest.mark.parametrize("url", ["ftp://host/x", "hooks.slack.com/services/x", ""])
def test_an_url_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Slack(SecretStr(url))
    assert not url or url not in str(caught.value)


@pytest.mark.parametrize("how", ["200", "404", "500", "hang", "refused", "no such host", "space in url", "bad port", "bad charset"])
def test_the_url_is_in_no_log_error_repr_state_or_event(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[Event] = []
    outbox = open_outbox(told)
    put(outbox, "k", "slack", ENTRY.payload, now=time.time())
    bad_charset = Answer(200, {"Content-Type": f"text/plain; charset={TOKEN}"})
    answers = {"404": [Answer(404)], "500": [Answer(500)], "hang": [HANG], "bad charset": [bad_charset, bad_charset]}.get(how, [])
    with Receiver(answers) as receiver:
        urls = {
            "refused": f"http://127.0.0.1:{free_port()}/{TOKEN}",
            "no such host": f"http://no-such-host.invalid/{TOKEN}",
            "space in url": receiver.url(f"/with space/{TOKEN}"),
            "bad port": f"http://127.0.0.1:port/{TOKEN}",
        }
        handler = Slack(SecretStr(urls.get(how, receiver.url(f"/{TOKEN}"))), timeout=1)
        if how != "200":
            with pytest.raises(ActionError) as caught:
                handler(ENTRY)
            error: BaseException | None = caught.value
            while error is not None:
                assert TOKEN not in f"{error!r} {error}"
                error = error.__cause__ or error.__context__
        Worker(outbox, {"slack": handler}).run_due()
    assert TOKEN not in repr(handler) + repr(vars(handler))
    assert "slack" in caplog.text
    assert TOKEN not in caplog.text
    # What a failure leaves behind: an entry that goes into the snapshot, or an event for the log.
    assert bool(outbox.state(0)) is not bool(told)
    assert TOKEN not in repr(outbox.state(0)) + repr(told)


@pytest.mark.parametrize(
    ("window", "says"),
    [
        ("", "no longer sees what"),
        ("short", "no longer sees what"),
        ("errors", "is wrong more often"),
        ("schema", "payloads that it cannot read"),
    ],
)
def test_what_a_models_drift_is_depends_on_what_was_judged(window, says):
    made = decision(finding("x", "ks", 1e-9, 0.05))
    made["verdict"]["of_window"] = window
    assert says in texts(drift_message(made))[1]
