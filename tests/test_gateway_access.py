"""Who may post, what an answer's connection does after it, and that it makes no difference whether a request comes whole or in pieces."""

import base64
import json
import logging
import socket
import time

import pytest
from gateways import ce, read_answer, running, until, wire

from inference.access import Access
from inference.event import LABEL, RESPONSE
from streaming.testing import poll_until

TOKEN = "t0ken-of-the-gateway"
DENIED = b"HTTP/1.1 401 Unauthorized\r\n"


def basic(user, password):
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """One gateway for tests that only look at what they add."""
    with running(tmp_path_factory.mktemp("guarded") / "events.db", access=Access(TOKEN)) as it:
        yield it


SHOWN = {
    "as Basic password": ("/", basic("kserve", TOKEN)),
    "as Basic password of nobody": ("/", basic("", TOKEN)),
    "as Bearer": ("/", {"Authorization": f"Bearer {TOKEN}"}),
    "as bearer": ("/", {"Authorization": f"bearer  {TOKEN}"}),
    "as the path": (f"/{TOKEN}", {}),
    "as the path's first part": (f"/{TOKEN}/events", {}),
    "as the path's last part": (f"/events/{TOKEN}/?x=1", {}),
    "in the path, escaped": (f"/%74{TOKEN[1:]}", {}),
}
NOT_SHOWN = {
    "nothing": ("/", {}),
    "another token": ("/", basic("kserve", TOKEN + "x")),
    "its beginning": ("/", {"Authorization": f"Bearer {TOKEN[:-1]}"}),
    "it as the user": ("/", basic(TOKEN, "")),
    "no base64": ("/", {"Authorization": "Basic %%%"}),
    "another scheme": ("/", {"Authorization": f"Digest {TOKEN}"}),
    "it in the middle of the path": (f"/a/{TOKEN}/b", {}),
    "it in the query": (f"/?{TOKEN}", {}),
    "it in capitals": (f"/{TOKEN.upper()}", {}),
}


def in_pieces(raw, message):
    for piece in (message[:50], message[50:-1], message[-1:]):
        raw.sendall(piece)
        time.sleep(0.05)  # so that each is read on its own


def whole(raw, message):
    raw.sendall(message)


WAYS = {"whole": whole, "in pieces": in_pieces}


@pytest.fixture(params=WAYS)
def send(request):
    return WAYS[request.param]


@pytest.mark.parametrize(("target", "headers"), SHOWN.values(), ids=SHOWN)
def test_who_shows_the_token_may_post(guarded, send, target, headers):
    before = guarded.bodies()
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=10) as raw, raw.makefile("rb") as stream:
        send(raw, wire(ce() | headers, target=target))
        assert read_answer(stream)[0] == b"HTTP/1.1 200 OK\r\n"
    assert guarded.bodies() == [*before, b"{}"]


@pytest.mark.parametrize(("target", "headers"), NOT_SHOWN.values(), ids=NOT_SHOWN)
def test_who_does_not_show_it_gets_401_and_leaves_nothing_behind(guarded, send, target, headers, caplog):
    caplog.set_level(logging.DEBUG)
    before = guarded.bodies(), guarded.log.dead_letters(), guarded.log.dead_letter_counts(), guarded.counts()["refused"]
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=10) as raw, raw.makefile("rb") as stream:
        send(raw, wire(ce() | headers, b'{"secret": 1}', target=target))
        status, head = read_answer(stream)
        assert status == DENIED
        assert b'www-authenticate: Basic realm="driftloop"' in head
        answer = json.loads(stream.read(int(head.partition(b"content-length: ")[2].split()[0])))
        assert answer["error"] == "unauthorized"
    refused = {"unauthorized": before[3].get("unauthorized", 0) + 1}
    assert (guarded.bodies(), guarded.log.dead_letters(), guarded.log.dead_letter_counts(), guarded.counts()["refused"]) == (
        *before[:3],
        refused,
    )
    for secret in (TOKEN, TOKEN.upper(), "secret"):
        assert secret not in caplog.text
        assert secret not in str(answer)


def test_the_token_is_not_stored_with_the_event_nor_with_a_dead_letter(guarded):
    before = len(guarded.bodies()), len(guarded.log.dead_letters())
    for headers in (ce(), ce("nope")):
        guarded.ask("POST", f"/{TOKEN}", b"{}", headers)
        guarded.ask("POST", "/", b"{}", headers | basic("kserve", TOKEN))
    assert (len(guarded.bodies()), len(guarded.log.dead_letters())) == (before[0] + 2, before[1] + 2)
    kept = b"".join(path.read_bytes() for path in guarded.log.path.parent.iterdir())
    for shown in (TOKEN, base64.b64encode(f"kserve:{TOKEN}".encode()).decode()):
        assert shown.encode() not in kept
    assert TOKEN not in repr(vars(guarded.gateway)["_access"])


def test_health_counts_and_metrics_are_open(guarded):
    assert [guarded.ask("GET", path)[0] for path in ("/healthz", "/counts", "/metrics")] == [200, 200, 200]


def test_a_token_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="at least 8 characters"):
        Access("1234567")


REQUESTS = {
    "good": wire(ce()),
    "without a body": wire(ce(RESPONSE), b""),
    "noise": wire(ce(RESPONSE, content_type=None), b"# HELP"),
    "wrong": wire(ce("nope")),
    "no JSON": wire(ce(LABEL), b"{"),
    "too large": wire(ce(), bytes(300)),
    "HTTP/1.0": wire(ce()).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "last": wire(ce() | {"Connection": "close"}),
    "announced": wire(ce() | {"Expect": "100-continue"}),
    "in chunks": wire(ce() | {"Transfer-Encoding": "chunked"}, b"").replace(b"Content-Length: 0\r\n", b"") + b"2\r\n{}\r\n0\r\n\r\n",
    "a GET": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "no HTTP": b"POST / HTTP/1.1\r\nno colon\r\n\r\n",
}


@pytest.mark.parametrize(("name", "closing"), [*((name, False) for name in REQUESTS), ("good", True), ("wrong", True), ("a GET", True)])
def test_a_request_that_comes_in_pieces_gets_the_answer_of_one_that_comes_whole(tmp_path, name, closing):
    told: list[tuple] = []
    for way in WAYS:
        with running(tmp_path / f"{way}.db", max_body=200, close_connections=closing) as served:
            with socket.create_connection(("127.0.0.1", served.port), timeout=5) as raw:
                try:
                    WAYS[way](raw, REQUESTS[name])
                except ConnectionError:
                    assert name == "no HTTP", "only there the answer comes before the end"
                answer, ended = b"", False
                try:
                    while received := raw.recv(65_536):
                        answer += received
                        raw.settimeout(0.2)
                    ended = True
                except TimeoutError:
                    pass
            counts = served.counts()
            # A body that is there already was not waited for (RFC 9110, 10.1.1).
            answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            told.append((sorted(answer.lower().split(b"\r\n")), ended, counts["rejected"], counts["ignored"], served.bodies()))
    assert told[0] == told[1]
    assert told[0][0] != [b""]
    if closing:
        assert told[0][1], "Connection: close on every answer, and it is closed"
        assert b"connection: close" in told[0][0]


def test_without_the_option_a_connection_stays_for_the_next_event(tmp_path):
    with running(tmp_path / "events.db") as served, socket.create_connection(("127.0.0.1", served.port), timeout=5) as raw:
        stream = raw.makefile("rb")
        for _ in range(3):
            raw.sendall(wire(ce()))
            assert read_answer(stream) == (b"HTTP/1.1 200 OK\r\n", b"content-length: 0\r\n")


def test_requests_that_follow_each_other_without_waiting_are_answered_in_order(tmp_path):
    """Some answers wait for the log, some are known at once."""
    kinds = {
        b"200": wire(ce()),
        b"400": wire(ce("nope")),
        b"404": b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
        b"405": b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    }
    noise = wire(ce(RESPONSE, content_type=None), b"# HELP")
    order = [b"400", b"200", b"404", b"400", b"405", b"200", b"400"]
    with running(tmp_path / "events.db") as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as raw, raw.makefile("rb") as stream:
            raw.sendall(b"".join(kinds[kind] + noise for kind in order))
            for kind in order:
                for expected in (kind, b"200"):
                    status, head = read_answer(stream)
                    assert status.split()[1] == expected
                    stream.read(int(head.partition(b"content-length: ")[2].split()[0]))
        assert served.counts()["ignored"] == {"not_inference": 7}
        assert len(served.bodies()) == 2


def test_a_silent_connection_is_closed_and_a_busy_one_is_not(tmp_path):
    with running(tmp_path / "events.db", keep_alive=0.4) as served:
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as raw:
            began = time.monotonic()
            assert raw.recv(1) == b"", "it never said anything"
            assert 0.3 < time.monotonic() - began < 3
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as raw, raw.makefile("rb") as stream:
            for _ in range(6):
                raw.sendall(wire(ce()))
                assert read_answer(stream)[0] == b"HTTP/1.1 200 OK\r\n"
                time.sleep(0.2)
            assert stream.read(1) == b""
        with socket.create_connection(("127.0.0.1", served.port), timeout=5) as raw:
            raw.sendall(b"POST / HTTP/1.1\r\nhost: ")
            for _ in range(100):
                time.sleep(0.05)
                try:
                    raw.sendall(b"x")
                except ConnectionError:
                    break
            else:
                pytest.fail("a head may not take for ever")


def test_a_client_that_is_gone_before_its_answer_does_no_harm(tmp_path):
    with running(tmp_path / "events.db") as served:
        for _ in range(20):
            raw = socket.create_connection(("127.0.0.1", served.port))
            raw.sendall(wire(ce()))
            raw.close()
        until(lambda: len(served.bodies()) == 20)
        assert poll_until(lambda: served.counts()["waiting"] == 0)
        assert served.ask("POST", "/", b"{}", ce()) == (200, b"")
