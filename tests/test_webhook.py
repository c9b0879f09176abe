"""The webhook, against a real receiver."""

import logging
import socket
import time
from dataclasses import replace

import pytest
from cloudevents.http import from_http
from pydantic import SecretStr

from inference.errors import ActionError, SettingsError
from inference.event import Event
from streaming.actions.outbox import Done, Entry, Later
from streaming.actions.webhook import Webhook, webhook_payload
from streaming.actions.worker import Policy, Worker
from streaming.core.verdict import Decision, Explanation, Finding, Moved, Place, Span, Verdict
from streaming.testing import HANG, Answer, Receiver, free_port, open_outbox, put

SPAN = Span(0, 10, 19, 1_800_000_000.0, 1_800_000_009.0)
VERDICT = Verdict(
    "v1",
    "default/iris",
    "1",
    3,
    30,
    SPAN,
    (Finding("drift", "petal", "ks", 1e-9, 0.05, True), Finding("drift", "x", "ks", float("nan"), 0.05, False, "empty")),
    ("drift",),
)
DECISION = Decision("d1", "retrain", "3 of 3 windows", "inc1", "run1", VERDICT, SPAN, {"petal": (1.0,)})
PAYLOAD = webhook_payload(DECISION, text="Drift in default/iris")
ENTRY = Entry("d1:webhook", "webhook", PAYLOAD, "default/iris", 0, created=1_800_000_010.0, next_at=0.0)
TOKEN = "t0ken-of-the-webhook"


def hook(receiver: Receiver, **options: float) -> Webhook:
    return Webhook(SecretStr(receiver.url(f"/hook?token={TOKEN}")), **options)


def test_the_decision_arrives_as_a_cloudevent_that_the_sdk_reads() -> None:
    with Receiver() as receiver:
        assert hook(receiver)(ENTRY) == Done("the webhook answered 200")
        (request,) = receiver.requests
    event = from_http(request.headers, request.body)
    assert (event["id"], event["type"], event["source"]) == ("d1", "io.driftloop.drift.detected", "driftloop")
    assert (event["namespace"], event["inferenceservicename"]) == ("default", "iris")
    assert event["time"] == "2027-01-15T08:00:10.000000Z"
    assert event.data["verdict"]["findings"][0]["feature"] == "petal"
    assert event.data["verdict"]["findings"][1]["score"] is None
    assert event.data["text"] == "Drift in default/iris"
    assert "evidence" not in event.data
    assert request.path == f"/hook?token={TOKEN}"


def test_the_explanation_arrives_with_it() -> None:
    what = Explanation("drift", "petal", "ks", "", 1e-9, 0.05, "up", (Moved("mean", 1.2, 3.05),), Place(15, 5.0), 5, False, 1.0)
    payload = webhook_payload(replace(DECISION, explanation=(what,), unexplained=2), text="Drift")
    with Receiver() as receiver:
        hook(receiver)(replace(ENTRY, payload=payload))
        data = from_http(receiver.requests[0].headers, receiver.requests[0].body).data
    (told,) = data["explanation"]
    assert (told["feature"], told["what"], told["before"], told["after"], told["direction"]) == ("petal", "mean", 1.2, 3.05, "up")
    assert told["since"] == {"offset": 15, "time": 5.0}
    assert (data["ranking"], data["unexplained"]) == ([{"feature": "petal", "share": 1.0}], 2)


def test_extra_headers_are_sent() -> None:
    with Receiver() as receiver:
        Webhook(SecretStr(receiver.url()), headers={"Authorization": SecretStr("Bearer abc")})(ENTRY)
        assert receiver.requests[0].headers["authorization"] == "Bearer abc"


def test_a_model_name_that_is_not_ascii_arrives() -> None:
    payload = {**ENTRY.payload, "verdict": {**ENTRY.payload["verdict"], "model": "default/größe"}}
    with Receiver() as receiver:
        assert isinstance(hook(receiver)(replace(ENTRY, payload=payload)), Done)
        assert receiver.requests[0].headers["ce-inferenceservicename"].encode("latin-1").decode() == "größe"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_a_passing_trouble_is_worth_another_try(status: int) -> None:
    with Receiver([Answer(status)]) as receiver, pytest.raises(ActionError, match=str(status)) as caught:
        hook(receiver)(ENTRY)
    assert caught.value.retry


@pytest.mark.parametrize("status", [302, 400, 401, 404, 410, 413])
def test_a_refusal_is_final(status: int) -> None:
    with (
        Receiver([Answer(status, {"Location": "/elsewhere"})]) as receiver,
        pytest.raises(ActionError, match=f"{status}.*check its URL") as caught,
    ):
        hook(receiver)(ENTRY)
    assert not caught.value.retry


@pytest.mark.parametrize(("asked", "wait"), [("7", 7.0), ("0", 1.0), ("999999", 3600.0)])
def test_a_wait_that_the_receiver_asks_for_is_kept_within_bounds(asked: str, wait: float) -> None:
    for status in (429, 503):
        with Receiver([Answer(status, {"Retry-After": asked})]) as receiver:
            result = hook(receiver)(ENTRY)
        assert isinstance(result, Later) and result.seconds == wait


@pytest.mark.parametrize("asked", ["soon", "nan", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_wait_that_cannot_be_read_is_an_ordinary_failure(asked: str) -> None:
    with Receiver([Answer(429, {"Retry-After": asked})]) as receiver, pytest.raises(ActionError):
        hook(receiver)(ENTRY)


def test_a_receiver_that_hangs_is_left_in_time() -> None:
    with Receiver([HANG]) as receiver:
        began = time.monotonic()
        with pytest.raises(ActionError, match=r"no answer within 0\.3 s") as caught:
            hook(receiver, timeout=0.3)(ENTRY)
        assert time.monotonic() - began < 3.0
    assert caught.value.retry


def test_a_refused_connection_says_so_and_is_tried_again() -> None:
    with pytest.raises(ActionError, match=r"[Rr]efused") as caught:
        Webhook(SecretStr(f"http://127.0.0.1:{free_port()}/{TOKEN}"))(ENTRY)
    assert caught.value.retry


@pytest.mark.parametrize("url", ["ftp://host/x", "hooks.example.com/x", ""])
def test_an_url_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Webhook(SecretStr(url))
    assert not url or url not in str(caught.value)


def test_500_and_then_200_is_one_delivery_by_the_worker() -> None:
    outbox = open_outbox([])
    put(outbox, ENTRY.key, "webhook", ENTRY.payload, now=time.time())
    with Receiver([Answer(500)]) as receiver:
        worker = Worker(outbox, {"webhook": hook(receiver)}, policies={"webhook": Policy(first_wait=0.01)}, poll=0.01)
        worker.start()
        assert worker.drain(10.0)
        worker.stop()
        first, second = receiver.requests
    assert first.headers["ce-id"] == second.headers["ce-id"]
    assert first.body == second.body
    assert outbox.counts() == {"webhook": {"done": 1}}


@pytest.mark.parametrize("how", ["200", "404", "500", "hang", "refused", "no such host", "bad url"])
def test_the_url_is_in_no_log_error_repr_state_or_event(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[Event] = []
    outbox = open_outbox(told)
    put(outbox, ENTRY.key, "webhook", ENTRY.payload, now=time.time())
    answers = {"404": [Answer(404)], "500": [Answer(500)], "hang": [HANG]}.get(how, [])
    with Receiver(answers) as receiver:
        urls = {
            "refused": f"http://127.0.0.1:{free_port()}/{TOKEN}",
            "no such host": f"http://no-such-host.invalid/{TOKEN}",
            "bad url": f"http://127.0.0.1:notaport/{TOKEN}",
        }
        handler = Webhook(SecretStr(urls.get(how, receiver.url(f"/{TOKEN}"))), timeout=0.3, headers={"X-Key": SecretStr(TOKEN)})
        if how != "200":
            with pytest.raises(ActionError) as caught:
                handler(ENTRY)
            error: BaseException | None = caught.value
            while error is not None:
                assert TOKEN not in f"{error!r} {error}"
                error = error.__cause__ or error.__context__
        Worker(outbox, {"webhook": handler}).run_due()
    assert TOKEN not in repr(handler) + repr(vars(handler))
    assert "webhook" in caplog.text
    assert TOKEN not in caplog.text
    # What a failure leaves behind: an entry that goes into the snapshot, or an event for the log.
    assert bool(outbox.state(0)) is not bool(told)
    assert TOKEN not in repr(outbox.state(0)) + repr(told)


def test_other_users_of_httpx_keep_their_log(caplog: pytest.LogCaptureFixture) -> None:
    import httpx

    caplog.set_level(logging.INFO)
    with Receiver() as receiver:
        hook(receiver)(ENTRY)
        httpx.post(receiver.url("/other"))
    assert "/other" in caplog.text
    assert "/hook" not in caplog.text


def test_a_receiver_takes_no_request_of_which_a_part_never_came():
    with Receiver() as receiver:
        with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as sender:
            sender.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
            sender.shutdown(socket.SHUT_WR)
            assert sender.recv(100) == b"", "no answer"
        assert receiver.requests == []
