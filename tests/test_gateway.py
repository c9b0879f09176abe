"""The gateway over real sockets: KServe's own recorded requests, bad input of every kind, full queues, kills and shutdown."""

import contextlib
import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateways import Running, ce, holding, in_thread, join, read_answer, recorded, running, until

from inference.errors import LogUnavailable, ServiceError
from inference.event import LABEL, PROMOTED, REQUEST, RESPONSE, RETRAINING_FINISHED, VERDICT, own_event, to_http
from inference.gateway_server import listen
from inference.log.embedded import EmbeddedLog

ROOT = Path(__file__).parents[1]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "events.db") as it:
        yield it


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One gateway for tests that only count what they add."""
    with running(tmp_path_factory.mktemp("shared") / "events.db") as it:
        yield it


def test_the_recording_of_kserves_logger_is_taken_in_exactly(served):
    requests = recorded()
    assert len(requests) == 214
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw, raw.makefile("rb") as stream:
        for wire, _, _ in requests:
            raw.sendall(wire)
            assert read_answer(stream) == (b"HTTP/1.1 200 OK\r\n", b"content-length: 0\r\n")
    counts = served.counts()
    assert counts["received"] == 214
    assert counts["appended"] == 206
    assert counts["ignored"] == {"empty_request": 4, "not_inference": 4}, "four GETs, two halves each"
    assert counts["rejected"] == {}
    assert counts["refused"] == {}
    assert served.log.dead_letters() == []

    kept = [(headers, body) for _, headers, body in requests if "content-type" in headers]
    records = served.log.read(served.log.start_positions(), 1000)
    assert len(records) == 206
    assert [record.event.data for record in records] == [body for _, body in kept]
    for record, (headers, _) in zip(records, kept, strict=True):
        event = record.event
        assert (event.id, event.source, event.type) == (headers["ce-id"], headers["ce-source"], headers["ce-type"])
        assert (event.time, event.datacontenttype, event.model) == (headers["ce-time"], headers["content-type"], "default/iris")
        named = ("ce-id", "ce-source", "ce-type", "ce-time", "ce-specversion")
        assert event.extensions == {name[3:]: value for name, value in headers.items() if name.startswith("ce-") and name not in named}
    assert sum(r.event.type == REQUEST for r in records) == 106
    assert sum(r.event.type == RESPONSE for r in records) == 100


def test_a_get_pair_is_ignored_but_a_prediction_without_content_type_is_not(served):
    answers = [
        b'{"predictions": [1]}',
        b'{"model_name": "iris", "outputs": []}',
        b'{"model_name": "iris", "outputs": [{"parameters": {"binary_data_size": 2}}]}\x00\x01',
        gzip.compress(b'{"predictions": [1]}'),
    ]
    for body in answers:
        assert served.ask("POST", "/", body, ce(RESPONSE, content_type=None)) == (200, b"")
    assert served.bodies() == answers
    for body in (
        b'{"models": ["a"]}',
        b'{"name": "a", "inputs": [], "outputs": []}',
        b'{"predictions": 3}',
        b"# HELP x",
        b"[]",
        b"\xff",
        b"",
    ):
        assert served.ask("POST", "/", body, ce(RESPONSE, content_type=None)) == (200, b"")
    assert served.ask("POST", "/", b"", ce(REQUEST)) == (200, b"")
    assert served.ask("POST", "/", b"anything", ce(REQUEST, content_type=None)) == (200, b"")
    assert served.ask("POST", "/", b'{"models": []}', ce(RESPONSE)) == (200, b"")
    counts = served.counts()
    assert counts["ignored"] == {"not_inference": 7, "empty_request": 1}
    assert counts["appended"] == 6


def test_any_path_takes_events_and_the_other_routes_answer_plainly(served):
    assert served.ask("POST", "/some/path?token=t", b"{}", ce()) == (200, b"")
    assert served.ask("GET", "/healthz") == (200, b'{"status":"ok"}')
    assert served.ask("GET", "/")[0] == 404
    assert served.ask("GET", "/healthz/more")[0] == 404
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"):
        assert served.ask(method, "/healthz")[0] == 405
    counts = served.counts()
    assert (counts["received"], counts["appended"], counts["queue_depth"], counts["batches"]) == (1, 1, 0, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "missing_id"),
        ({"id": ""}, "missing_id"),
        ({"source": None}, "missing_source"),
        ({"type": None}, "missing_type"),
        ({"specversion": None}, "missing_specversion"),
        ({"specversion": "0.3"}, "unsupported_specversion"),
        ({"namespace": None}, "missing_namespace"),
        ({"namespace": ""}, "missing_namespace"),
        ({"inferenceservicename": None}, "missing_inferenceservicename"),
        ({"namespace": "Default"}, "bad_namespace"),
        ({"namespace": "a.b"}, "bad_namespace"),
        ({"namespace": "n" * 64}, "bad_namespace"),
        ({"namespace": "../etc"}, "bad_namespace"),
        ({"inferenceservicename": "iris/../x"}, "bad_inferenceservicename"),
        ({"inferenceservicename": "-iris"}, "bad_inferenceservicename"),
        ({"inferenceservicename": "iris\x80"}, "attribute_not_utf8"),
        ({"type": "com.example.other"}, "unknown_type"),
        ({"type": VERDICT}, "unknown_type"),
        ({"time": "a\tb"}, "bad_attribute"),
        ({"bad_name": "1"}, "bad_attribute"),
        ({"annotations": "x" * 20_000}, "attribute_too_long"),
        ({f"x{n}": "1" for n in range(70)}, "too_many_attributes"),
        ({"content_type": "application/cloudevents-batch+json"}, "unsupported_mode"),
    ],
)
def test_a_message_with_wrong_attributes_is_set_aside_with_the_reason(shared, changes, reason):
    before, appended, stored = shared.counts()["rejected"], shared.counts()["appended"], shared.log.dead_letter_counts()
    assert shared.rejected(ce(**changes), b'{"a": 1}') == reason
    assert shared.counts()["rejected"] == before | {reason: before.get(reason, 0) + 1}
    assert shared.log.dead_letter_counts() == stored | {reason: stored.get(reason, 0) + 1}
    assert shared.log.dead_letters()[-1].body == b'{"a": 1}'
    assert shared.counts()["appended"] == appended


def test_an_unknown_type_is_told_which_types_are_accepted(served):
    _, answer = served.ask("POST", "/", b"{}", ce("com.example.other"))
    message = json.loads(answer)["message"]
    assert "'com.example.other'" in message
    for accepted in (REQUEST, RESPONSE, LABEL, PROMOTED, RETRAINING_FINISHED):
        assert accepted in message


def test_our_own_events_are_taken_if_their_body_is_a_json_object(served):
    for number, type_ in enumerate((LABEL, PROMOTED, RETRAINING_FINISHED)):
        event = own_event(type_, {"n": number}, model="default/iris", source="test", id_=str(number), now=0.0)
        headers, body = to_http(event)
        assert served.ask("POST", "/", body, dict(headers)) == (200, b"")
        for bad in (b"", b"[1]", b"{", b"null", b"\xff{}"):
            assert served.rejected(ce(type_), bad) == "bad_json"
    assert served.bodies() == [b'{"n":0}', b'{"n":1}', b'{"n":2}']


def test_structured_mode_is_taken_and_stands_on_the_log_as_binary_mode(served):
    document = {"specversion": "1.0", "id": "7", "source": "s", "type": REQUEST, "namespace": "default", "inferenceservicename": "iris"}
    structured = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
    assert served.ask("POST", "/", json.dumps(document | {"data": {"instances": [[1.5]]}}), structured) == (200, b"")
    assert served.ask("POST", "/", json.dumps(document | {"data_base64": "AP8="}), structured) == (200, b"")
    assert served.bodies() == [b'{"instances":[[1.5]]}', b"\x00\xff"]
    assert served.log.read({2: 0})[0].event.model == "default/iris"
    for bad in (b"", b"{", b"[]", json.dumps(document | {"data_base64": "!"}), json.dumps(document | {"id": {}})):
        assert served.rejected(structured, bad) in ("bad_json", "bad_data", "bad_attribute")
    nested = json.dumps(document)[:-1]
    for depth, reason in ((500, "bad_data"), (100_000, "bad_json")):
        assert served.rejected(structured, f'{nested}, "data": {"[" * depth}{"]" * depth}}}') == reason
    assert served.ask("POST", "/", b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ce()) == (200, b""), "kept as bytes"


def test_an_event_that_can_not_stand_on_a_log_is_rejected_without_its_neighbours(served):
    document = {"specversion": "1.0", "source": "s", "type": REQUEST, "namespace": "default", "inferenceservicename": "iris", "data": "x"}
    poison = json.dumps(document | {"id": "bad", "datacontenttype": "application/cloudevents+json"})
    with holding(served.log.path):
        posts = [in_thread(served, b"0", ce())]
        until(lambda: served.gateway.counts()["waiting"] == 1 and served.gateway.counts()["queue_depth"] == 0)
        posts += [  # while the writer is busy with the first, these make up the next batch
            in_thread(served, b"1", ce()),
            in_thread(served, poison, {"Content-Type": "application/cloudevents+json"}),
            in_thread(served, b"2", ce()),
        ]
        until(lambda: served.gateway.counts()["queue_depth"] == 3)
    assert [join(post)[0] for post in posts] == [200, 200, 400, 200]
    assert sorted(served.bodies()) == [b"0", b"1", b"2"]
    assert served.log.dead_letter_counts() == {"unreadable": 1}


def test_credentials_do_not_reach_the_dead_letters(served):
    served.ask("POST", "/?key=s3cret", b"{}", ce("nope") | {"Authorization": "Basic s3cret", "Cookie": "a=s3cret"})
    assert "s3cret" not in repr(served.log.dead_letters())
    assert len(served.log.dead_letters()) == 1


def test_a_body_of_50_mb_gets_413_and_is_set_aside_without_its_body(served):
    status, answer = served.ask("POST", "/", bytes(50_000_000), ce())
    assert status == 413
    assert json.loads(answer) == {"error": "body_too_large", "message": "a body of 50000000 bytes; at most 1000000 are accepted"}
    chunks = (bytes(100_000) for _ in range(30))
    connection = served.connection()
    with contextlib.closing(connection):
        connection.request("POST", "/", chunks, ce(), encode_chunked=True)
        reply = connection.getresponse()
        assert (reply.status, reply.getheader("connection")) == (413, "close")
        assert "more than 1000000 bytes" in json.loads(reply.read())["message"]
    letters = served.log.dead_letters()
    assert [(letter.reason, letter.body, letter.length) for letter in letters] == [("body_too_large", b"", 0)] * 2
    assert ("content-length", "50000000") in letters[0].headers
    assert served.ask("POST", "/", bytes(1_000_000), ce()) == (200, b""), "exactly the bound is accepted"
    assert served.ask("POST", "/", bytes(1_000_001), ce())[0] == 413
    assert [len(body) for body in served.bodies()] == [1_000_000]


def test_a_413_is_answered_before_the_body_is_sent(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw, raw.makefile("rb") as stream:
        head = "".join(f"{name}: {value}\r\n" for name, value in ce().items())
        raw.sendall(f"POST / HTTP/1.1\r\nhost: x\r\n{head}content-length: 50000000\r\nexpect: 100-continue\r\n\r\n".encode())
        assert stream.readline().startswith(b"HTTP/1.1 413 ")


def test_a_client_that_goes_away_or_is_slow_costs_only_itself(tmp_path):
    with running(tmp_path / "events.db", body_timeout=0.3) as served:
        head = "POST / HTTP/1.1\r\nhost: x\r\n" + "".join(f"{n}: {v}\r\n" for n, v in ce().items()) + "content-length: 100\r\n\r\n"
        with socket.create_connection(("127.0.0.1", served.port)) as raw:
            raw.sendall(head.encode() + b"half")
            until(lambda: served.gateway.counts()["waiting"] == 1)
        until(lambda: served.counts()["disconnected"] == 1)
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw, raw.makefile("rb") as stream:
            raw.sendall(head.encode() + b"half")
            status, rest = read_answer(stream)
            assert status == b"HTTP/1.1 408 Request Timeout\r\n"
            assert b"connection: close" in rest
            assert b"(4 bytes came)" in stream.read()
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw, raw.makefile("rb") as stream:
            for piece in (head[:50], head[50:], "x" * 50, "y" * 50):
                raw.sendall(piece.encode())
                time.sleep(0.02)
            assert read_answer(stream)[0] == b"HTTP/1.1 200 OK\r\n"
        assert served.bodies() == [b"x" * 50 + b"y" * 50]
        assert served.counts()["rejected"] == {"body_timeout": 1}
        assert served.gateway._waiting_bytes == 0


@pytest.mark.parametrize(
    "wire",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello",
        b"POST / HTTP/1.1\r\nhost: x\r\nno colon here\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\nce-id: a\x00b\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
    ],
)
def test_malformed_http_is_answered_with_400_and_the_gateway_goes_on(shared, wire):
    before = shared.bodies()
    with socket.create_connection(("127.0.0.1", shared.port), timeout=10) as raw:
        raw.sendall(wire)
        assert raw.makefile("rb").readline() == b"HTTP/1.1 400 Bad Request\r\n"
    assert shared.ask("POST", "/", b"{}", ce()) == (200, b"")
    assert shared.bodies() == [*before, b"{}"]


def test_an_endless_head_is_cut_off(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nhost: x\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 5_000_000:
                raw.sendall(b"x-more: " + b"y" * 8_000 + b"\r\n")
                sent += 8_010
        assert sent < 4_000_000
    assert served.ask("GET", "/healthz")[0] == 200


def test_many_heads_that_come_in_pieces_are_not_taken_for_a_long_one(served):
    head = f"POST / HTTP/1.1\r\nhost: x\r\nx-pad: {'p' * 8_000}\r\n" + "".join(f"{n}: {v}\r\n" for n, v in ce().items())
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as raw, raw.makefile("rb") as stream:
        for _ in range(20):
            raw.sendall(head.encode())
            time.sleep(0.01)
            raw.sendall(b"content-length: 2\r\n\r\n{}")
            assert read_answer(stream)[0] == b"HTTP/1.1 200 OK\r\n"
    assert len(served.bodies()) == 20


def test_when_the_queue_is_full_it_says_503_and_those_waiting_are_still_written(tmp_path):
    with running(tmp_path / "events.db", max_waiting=2, busy_timeout=20) as served:
        with holding(served.log.path):
            posts = []
            for number in range(2):
                posts.append(in_thread(served, b"%d" % number, ce()))
                until(lambda n=number: served.gateway.counts()["waiting"] == n + 1)
            connection = served.connection()
            with contextlib.closing(connection):
                connection.request("POST", "/", b"too many", ce())
                answer = connection.getresponse()
                assert (answer.status, answer.getheader("retry-after")) == (503, "1")
                assert json.loads(answer.read())["error"] == "queue_full"
            assert served.ask("GET", "/healthz")[0] == 200, "the loop is not held up by a locked log"
            assert served.counts()["refused"] == {"queue_full": 1}
        assert [join(post) for post in posts] == [(200, b""), (200, b"")]
        assert sorted(served.bodies()) == [b"0", b"1"]
        assert served.ask("POST", "/", b"again", ce()) == (200, b"")


def test_the_bytes_held_in_memory_are_bounded(tmp_path):
    with running(tmp_path / "events.db", max_waiting_bytes=150, busy_timeout=20) as served:
        with holding(served.log.path):
            post = in_thread(served, b"x" * 100, ce())
            until(lambda: served.gateway.counts()["waiting"] == 1)
            assert served.ask("POST", "/", b"y" * 51, ce())[0] == 503
            second = in_thread(served, b"z" * 50, ce())
            until(lambda: served.gateway.counts()["waiting"] == 2)
        assert (join(post)[0], join(second)[0]) == (200, 200)
        assert served.counts()["refused"] == {"queue_full": 1}


def test_a_log_that_is_away_gives_503_with_the_reason_and_then_goes_on(tmp_path):
    with running(tmp_path / "events.db", busy_timeout=0.1) as served:
        with holding(served.log.path):
            status, answer = served.ask("POST", "/", b"{}", ce())
            assert status == 503
            assert json.loads(answer)["error"] == "log_unavailable"
            assert "another process held it" in json.loads(answer)["message"]
            assert served.ask("POST", "/", b"{}", ce("nope"))[0] == 400, "a bad event is bad whether or not it can be set aside"
        assert served.ask("POST", "/", b"{}", ce()) == (200, b"")
        counts = served.counts()
        assert (counts["refused"], counts["dead_letters_lost"], counts["appended"]) == ({"log_unavailable": 1}, 1, 1)


def test_what_waits_together_is_written_in_one_batch(served):
    with holding(served.log.path):
        first = in_thread(served, b"0", ce())
        until(lambda: served.gateway.counts()["waiting"] == 1 and served.gateway.counts()["queue_depth"] == 0)
        posts = [in_thread(served, b"%d" % number, ce()) for number in range(1, 21)]
        until(lambda: served.counts()["queue_depth"] == 20)
    assert {join(post)[0] for post in (first, *posts)} == {200}
    assert served.counts()["batches"] == 2
    assert sorted(map(int, served.bodies())) == list(range(21))


def test_what_waits_when_the_time_for_shutdown_is_over_is_still_written(tmp_path):
    path = tmp_path / "events.db"
    EmbeddedLog(path).close()
    with contextlib.ExitStack() as lock, running(path, busy_timeout=20, shutdown_timeout=1) as served:
        lock.enter_context(holding(path))
        head = "POST / HTTP/1.1\r\nhost: x\r\n" + "".join(f"{n}: {v}\r\n" for n, v in ce().items())
        raws = [lock.enter_context(socket.create_connection(("127.0.0.1", served.port))) for _ in range(3)]
        for number, raw in enumerate(raws):
            raw.sendall(f"{head}content-length: 1\r\n\r\n{number}".encode())
        until(lambda: served.gateway.counts()["waiting"] == 3)
        threading.Timer(1.6, lock.close).start()
    log = EmbeddedLog(path)
    assert sorted(record.event.data for record in log.read(log.start_positions())) == [b"0", b"1", b"2"]


SERVE = """
import resource, sys
from inference.errors import DriftloopError
from inference.gateway_server import GatewayOptions, serve_gateway
from inference.log.connection import connection_to
def ready(port):
    print(port, flush=True)
    if len(sys.argv) > 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    serve_gateway(GatewayOptions(connection_to(sys.argv[1]), port=int(sys.argv[2])), on_ready=ready)
    print("ended")
except DriftloopError as error:
    print(type(error).__name__, error)
"""


def served_process(url: object, port: int = 0, *more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SERVE, str(url), str(port), *map(str, more)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def stream_posts(port: int, client: int, acknowledged: list[str], stop: threading.Event) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for number in range(1_000_000):
            if stop.is_set():
                break
            identity = f"{client}-{number}"
            connection.request("POST", "/", identity, ce(id_=identity))
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                acknowledged.append(identity)
        connection.close()


def test_after_a_kill_every_acknowledged_event_is_on_the_log_once_and_in_order(tmp_path):
    path = tmp_path / "events.db"
    for round_ in range(2):
        process = served_process(path)
        port = int(process.stdout.readline())
        acknowledged: list[list[str]] = [[] for _ in range(4)]
        stop = threading.Event()
        clients = [threading.Thread(target=stream_posts, args=(port, round_ * 10 + n, told, stop)) for n, told in enumerate(acknowledged)]
        for client in clients:
            client.start()
        until(lambda told=acknowledged: sum(map(len, told)) > 400)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        for client in clients:
            client.join(20)
        log = EmbeddedLog(path)
        ids = [record.event.id for record in log.read(log.start_positions(), 100_000)]
        assert len(ids) == len(set(ids))
        for number, told in enumerate(acknowledged):
            mine = [identity for identity in ids if identity.startswith(f"{round_ * 10 + number}-")]
            assert len(told) > 20
            assert mine[: len(told)] == told
            assert len(mine) - len(told) in (0, 1), "at most the one that was on its way"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_what_was_accepted_is_written_and_answered(tmp_path, number):
    path = tmp_path / "events.db"
    process = served_process(path)
    port = int(process.stdout.readline())
    acknowledged: list[list[str]] = [[] for _ in range(3)]
    clients = [threading.Thread(target=stream_posts, args=(port, n, told, threading.Event())) for n, told in enumerate(acknowledged)]
    for client in clients:
        client.start()
    until(lambda: sum(map(len, acknowledged)) > 100)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    for client in clients:
        client.join(20)
    assert (process.returncode, out, err) == (0, "ended\n", "")
    log = EmbeddedLog(path)
    ids = [record.event.id for record in log.read(log.start_positions(), 100_000)]
    assert sorted(ids) == sorted(identity for told in acknowledged for identity in told), "each that was written was also answered"
    assert not (tmp_path / "events.db-wal").exists() or log.close() is None


def test_a_signal_that_comes_with_the_first_readiness_ends_it_too(tmp_path):
    code = (
        "import os, signal, sys; from inference.gateway_server import GatewayOptions, serve_gateway;"
        "from inference.log.connection import connection_to;"
        "end = lambda port: os.kill(os.getpid(), signal.SIGTERM);"
        "serve_gateway(GatewayOptions(connection_to(sys.argv[1]), port=0), end); print('ended')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "events.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


def test_a_full_disk_is_503_and_every_acknowledged_event_is_still_there(tmp_path):
    path = tmp_path / "events.db"
    process = served_process(path, 0, 600_000)
    port = int(process.stdout.readline())
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    acknowledged = []
    for number in range(500):
        connection.request("POST", "/", b"%d" % number + bytes(5_000), ce(id_=str(number)))
        answer = connection.getresponse()
        problem = answer.read()
        if answer.status != 200:
            break
        acknowledged.append(str(number))
    assert answer.status == 503
    assert json.loads(problem)["error"] == "log_unavailable"
    assert "check its space" in json.loads(problem)["message"]
    connection.close()
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert "ended" in out
    assert str(path) in err, "the warning on the log names the file"
    log = EmbeddedLog(path)
    assert len(acknowledged) > 20
    assert [record.event.id for record in log.read({2: 0}, 1000)] == acknowledged


def test_a_port_in_use_and_a_bad_host_are_named_with_what_to_do(tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        process = served_process(tmp_path / "events.db", port)
        out, err = process.communicate(timeout=20)
        assert out.startswith(f"ServiceError can't listen on 127.0.0.1:{port}: Address already in use; give another port"), (out, err)
        assert err == ""
    with listen("127.0.0.1", port):
        pass  # free again at once
    with pytest.raises(ServiceError, match=r"can't listen on 203\.0\.113\.7:0: "):
        listen("203.0.113.7", 0)
    with pytest.raises(ServiceError, match="can't listen on no such host:0: "):
        listen("no such host", 0)


def test_a_log_in_a_place_that_can_not_be_written_is_said_before_it_serves(tmp_path):
    (tmp_path / "file").write_text("x")
    out, _ = served_process(tmp_path / "file" / "events.db").communicate(timeout=20)
    assert out.startswith(f"{LogUnavailable.__name__} event log {tmp_path / 'file' / 'events.db'}: its folder can't be made")


def test_the_gateways_process_loads_nothing_heavy():
    code = (
        "import sys, inference.gateway; print([m for m in ('numpy','pandas','sklearn','scipy','river','kfp','kserve') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.stdout, done.stderr) == ("[]\n", "")
