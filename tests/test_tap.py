"""The payload tap against the recording of KServe's own logger, and against sinks that misbehave."""

import asyncio
import base64
import gzip
import json
import logging
import time
from collections import defaultdict, deque
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest

from inference.errors import ServiceError
from inference.event import REQUEST, RESPONSE
from inference.tap import EXCHANGE, MAX_BODY, Tap, TapMiddleware

RECORDING = Path(__file__).parent / "recordings" / "kserve-logger-all.jsonl.gz"


class Sink:
    """A raw HTTP server: keeps each request's bytes as they came, answers with `status` after `delay` seconds."""

    def __init__(self, status=200, delay=0.0):
        self.status, self.delay, self.requests = status, delay, []

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def _serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
                self.requests.append((head, await reader.readexactly(length)))
                await asyncio.sleep(self.delay)
                writer.write(f"HTTP/1.1 {self.status} Whatever\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    def headers(self):
        return [dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line) for head, _ in self.requests]


def answering(status=200, body=b'{"predictions":[0]}', version=None, parts=1):
    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        if version is not None:
            EXCHANGE.get().version = version
        await send({"type": "http.response.start", "status": status, "headers": []})
        for number in range(parts):
            await send({"type": "http.response.body", "body": body, "more_body": number + 1 < parts})

    return app


async def ask(app, *, body=b"{}", headers=(), method="POST", path="/v1/models/iris-sklearn:predict", cut=1, abort=False):
    size = max(1, -(-len(body) // cut))
    chunks = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    messages = deque({"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks)
    messages[-1]["more_body"] = abort
    if abort:
        messages.append({"type": "http.disconnect"})
    sent = []

    async def receive():
        return messages.popleft() if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "headers": list(headers)}, receive, send)
    return sent


@asynccontextmanager
async def tapped(url, app, **settings):
    async with Tap(url, model="default/iris", source="pod-1", **settings) as tap:
        yield tap, TapMiddleware(app, tap)


def recorded():
    with gzip.open(RECORDING) as file:
        return [json.loads(line) for line in file]


def nanoseconds(text):
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(whole + "+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


def on_the_wire(entry, port):
    headers = [(name, f"127.0.0.1:{port}" if name == "Host" else value) for name, value in entry["headers"]]
    head = entry["request_line"] + "\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
    return head.encode(), base64.b64decode(entry["body_base64"])


def test_the_tap_sends_what_kserves_logger_sent_byte_for_byte():
    exchanges = defaultdict(dict)
    for entry in recorded():
        headers = dict(entry["headers"])
        exchanges[headers["Ce-Id"]][headers["Ce-Type"]] = entry

    async def replay():
        times, ids, answer = deque(), deque(), {}

        async def app(scope, receive, send):
            await tap.drained()  # so that the clock is asked in the recording's order: occurred, sent, occurred, sent
            assert EXCHANGE.get().version == "3"
            await answering(*answer["it"])(scope, receive, send)

        async with Sink() as sink:
            async with Tap(
                sink.url,
                model="default/iris",
                source="iris-predictor-7c9d5b6d5c-x2x7q",
                version=lambda: "3",
                annotation="drift/model-version",
                clock=times.popleft,
                new_id=ids.popleft,
            ) as tap:
                middleware = TapMiddleware(app, tap)
                for id_, halves in exchanges.items():
                    for type_ in (REQUEST, RESPONSE):
                        if type_ in halves:
                            headers = dict(halves[type_]["headers"])
                            times.extend([nanoseconds(headers["Ce-Time"]), nanoseconds(headers["Ce-Recordedtime"])])
                    request = dict(halves[REQUEST]["headers"])
                    client = [(k.lower().encode(), v.encode()) for k, [v] in json.loads(request["Ce-Metadata"]).items()]
                    if "Content-Type" in request:
                        client.append((b"content-type", request["Content-Type"].encode()))
                    if id_.startswith("client-"):
                        client.append((b"ce-id", id_.encode()))
                    else:
                        ids.append(id_)
                    body = base64.b64decode(halves[REQUEST]["body_base64"])
                    answer["it"] = (200, base64.b64decode(halves[RESPONSE]["body_base64"])) if RESPONSE in halves else (400, b"no")
                    v2 = b'"inputs"' in body
                    path = "/v2/models/iris-sklearn/infer" if v2 else "/v1/models/iris-sklearn:predict"
                    await ask(middleware, body=body, headers=client, method="POST" if body else "GET", path=path)
                    await tap.drained()
                assert (tap.counts["sent"], len(times), len(ids)) == (214, 0, 0)
            return sink.port, sink.requests

    port, requests = asyncio.run(replay())
    wanted = [on_the_wire(halves[type_], port) for halves in exchanges.values() for type_ in (REQUEST, RESPONSE) if type_ in halves]
    assert len(requests) == len(wanted) == 214
    for got, want in zip(requests, wanted, strict=True):
        assert got == want


def test_bodies_in_pieces_arrive_whole_in_both_directions():
    async def run():
        async with Sink() as sink, tapped(sink.url, answering(body=b"abc", parts=3)) as (tap, app):
            sent = await ask(app, body=b"0123456789", cut=4)
            await tap.drained()
            return sink.requests, sent

    requests, sent = asyncio.run(run())
    assert sorted(body for _, body in requests) == [b"0123456789", b"abcabcabc"]
    assert [message.get("body") for message in sent] == [None, b"abc", b"abc", b"abc"]


def test_both_halves_share_an_id_and_the_answer_names_the_version_that_answered():
    async def run():
        async with Sink() as sink, tapped(sink.url, answering(version="2"), version=lambda: "1") as (tap, app):
            await ask(app, headers=[(b"content-type", b"application/json")])
            await tap.drained()
            return sink.headers()

    halves = {headers["Ce-Type"]: headers for headers in asyncio.run(run())}
    assert halves[REQUEST]["Ce-Id"] == halves[RESPONSE]["Ce-Id"]
    assert halves[REQUEST]["Ce-Annotations"] == '{"driftloop.io/model-version":"1"}'
    assert halves[RESPONSE]["Ce-Annotations"] == '{"driftloop.io/model-version":"2"}'


def test_only_status_200_gives_a_response_event_and_a_kube_probe_gives_none():
    async def run():
        async with Sink() as sink, tapped(sink.url, answering(status=201)) as (tap, app):
            await ask(app)
            await ask(app, headers=[(b"user-agent", b"kube-probe/1.31")])
            await tap.drained()
            return [headers["Ce-Type"] for headers in sink.headers()]

    assert asyncio.run(run()) == [REQUEST]


def test_a_client_that_goes_away_half_way_gives_no_event_and_the_application_sees_it_go():
    seen = []

    async def app(scope, receive, send):
        seen.extend([await receive(), await receive()])

    async def run():
        async with Sink() as sink, tapped(sink.url, app) as (tap, middleware):
            await ask(middleware, body=b"half", abort=True)
            await tap.drained()
            return sink.requests

    assert asyncio.run(run()) == []
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect"]


def test_an_answer_that_breaks_off_gives_no_response_event_and_its_error_reaches_the_server():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        raise RuntimeError("the model died")

    async def run():
        async with Sink() as sink, tapped(sink.url, app) as (tap, middleware):
            with pytest.raises(RuntimeError, match="the model died"):
                await ask(middleware)
            await tap.drained()
            return [headers["Ce-Type"] for headers in sink.headers()]

    assert asyncio.run(run()) == [REQUEST]


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_an_unreachable_or_refusing_sink_loses_events_but_no_answer(caplog, delay):
    async def run():
        async with Sink(status=503, delay=delay) as sink, tapped(sink.url, answering()) as (tap, app):
            answers = [await ask(app) for _ in range(10)]
            await tap.drained()
            refused = dict(tap.counts)
        async with tapped("http://127.0.0.1:9", answering()) as (tap, app):
            answers += [await ask(app) for _ in range(10)]
            await tap.drained()
            return answers, refused, dict(tap.counts)

    with caplog.at_level(logging.WARNING, "inference.tap"):
        answers, refused, unreachable = asyncio.run(run())
    assert [len(sent) for sent in answers] == [2] * 20
    assert (refused, unreachable) == ({"refused": 20}, {"unreachable": 20})
    assert len(caplog.records) == 4, "one warning when the loss begins and one with the rest at the end, for each sink"
    assert "the tap lost 1 event(s)" in caplog.messages[0] and "answered 503" in caplog.messages[0]
    assert "the tap lost 19 event(s)" in caplog.messages[1]


def test_a_full_queue_drops_counts_and_warns_once_per_burst_and_never_waits(caplog):
    async def run():
        async with Sink(delay=0.5) as sink, tapped(sink.url, answering(status=400), capacity=4, flush=5) as (tap, app):
            await asyncio.sleep(0.01)
            began = time.monotonic()
            for _ in range(50):
                await ask(app)
            asked = time.monotonic() - began
            await tap.drained()
            return asked, dict(tap.counts)

    with caplog.at_level(logging.WARNING, "inference.tap"):
        asked, counts = asyncio.run(run())
    assert asked < 0.4
    assert counts["overflow"] + counts["sent"] == 50 and counts["overflow"] >= 40
    assert sum("queue is full" in message for message in caplog.messages) == 1


def test_a_sink_that_hangs_delays_the_shutdown_by_the_flush_time_only():
    async def run():
        async with Sink(delay=60) as sink:
            began = time.monotonic()
            async with tapped(sink.url, answering(), flush=0.3) as (tap, app):
                for _ in range(10):
                    await ask(app)
            return time.monotonic() - began, dict(tap.counts)

    seconds, counts = asyncio.run(run())
    assert 0.3 <= seconds < 2
    assert counts == {"shutdown": 20}


def test_what_is_queued_is_sent_before_the_tap_ends():
    async def run():
        async with Sink(delay=0.02) as sink:
            async with tapped(sink.url, answering()) as (tap, app):
                for _ in range(30):
                    await ask(app)
                assert tap.counts["sent"] < 60
            return tap.counts["sent"]

    assert asyncio.run(run()) == 60


def test_a_body_over_the_bound_is_answered_but_not_tapped():
    async def run():
        async with Sink() as sink, tapped(sink.url, answering(body=bytes(2**20), parts=MAX_BODY // 2**20 + 1)) as (tap, app):
            sent = await ask(app, body=b"{}")
            await tap.drained()
            return len(sent), dict(tap.counts)

    assert asyncio.run(run()) == (MAX_BODY // 2**20 + 2, {"sent": 1, "too_large": 1})


def test_the_bodies_in_the_queue_are_bounded_too(monkeypatch):
    monkeypatch.setattr("inference.tap.MAX_QUEUED", 100)

    async def run():
        async with Sink(delay=0.1) as sink, tapped(sink.url, answering(status=400)) as (tap, app):
            for _ in range(3):
                await ask(app, body=bytes(60))
            await tap.drained()
            await ask(app, body=bytes(60))
            await tap.drained()
            return dict(tap.counts)

    assert asyncio.run(run()) == {"sent": 2, "overflow": 2}


def test_an_error_inside_the_tap_is_counted_and_the_answer_goes_out(caplog):
    def broken():
        raise OSError("no randomness")

    async def run():
        async with Sink() as sink, tapped(sink.url, answering(), new_id=broken) as (tap, app):
            return await ask(app), dict(tap.counts)

    sent, counts = asyncio.run(run())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert counts == {"failed": 1}


def test_path_query_and_user_of_the_url_are_kept_and_the_password_stays_out_of_the_log(caplog):
    async def run():
        async with Sink(status=401) as sink, tapped(f"http://me:s3cret@127.0.0.1:{sink.port}/in?token=t0ken", answering()) as (tap, app):
            await ask(app)
            await tap.drained()
            return sink.requests[0][0]

    head = asyncio.run(run())
    assert head.startswith(b"POST /in?token=t0ken HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Basic bWU6czNjcmV0\r\nCe-Annotations: {}\r\n" in head
    assert "the tap lost" in caplog.text and "s3cret" not in caplog.text and "t0ken" not in caplog.text


@pytest.mark.parametrize("url", ["ftp://host/", "127.0.0.1:8081", "http://", "http://host:port/", "http://u:s3cret@host:x/"])
def test_a_url_that_is_none_is_refused_without_showing_a_password(url):
    with pytest.raises(ServiceError, match=r"http://127\.0\.0\.1:8081/") as caught:
        Tap(url, model="default/iris", source="pod")
    assert "s3cret" not in str(caught.value)


def test_times_are_gos_rfc3339_and_names_are_escaped_as_go_does():
    async def run():
        clock = iter([1_700_000_000_120_000_000, 1_700_000_000_000_000_000]).__next__
        async with Sink() as sink, tapped(sink.url, answering(status=500), clock=clock) as (tap, app):
            await ask(app, headers=[(b"x-request-id", b"a<b&c"), (b"x-request-id", b"two"), (b"x-other", b"no")])
            await tap.drained()
            return sink.headers()[0]

    headers = asyncio.run(run())
    assert (headers["Ce-Time"], headers["Ce-Recordedtime"]) == ("2023-11-14T22:13:20.12Z", "2023-11-14T22:13:20Z")
    assert headers["Ce-Metadata"] == '{"X-Request-Id":["a\\u003cb\\u0026c","two"]}'
    assert "Content-Type" not in headers
