"""Copies for a second receiver: as they came, best effort, bounded, and never in the way of the log."""

import base64
import logging
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from gateways import ce, recorded, running

from inference.access import Access
from inference.errors import SettingsError
from inference.event import RESPONSE
from inference.tee import Tee, TeeOptions
from streaming.testing import HANG, Answer, Receiver, free_port, poll_until

HEADERS = [(b"ce-id", b"1"), (b"content-type", b"application/json")]


@pytest.fixture
def making():
    """Makes tees and closes them."""
    made = []

    def make(url, **options):
        made.append(Tee(TeeOptions(url, **options)))
        return made[-1]

    yield make
    for tee in made:
        tee.close(0.1)


def test_each_accepted_event_is_posted_with_the_headers_and_bytes_that_came(tmp_path, making):
    requests = recorded()[:60]
    with Receiver() as receiver, running(tmp_path / "events.db", tee=making(receiver.url("/sink?x=1"), connections=1)) as served:
        for _, headers, body in requests:
            assert served.ask("POST", "/", body, headers)[0] == 200
        taken = [(headers, body) for _, headers, body in requests if "content-type" in headers]
        assert receiver.wait_for(len(taken))
        assert len(served.bodies()) == len(taken) == len(receiver.requests)
        for got, (headers, body) in zip(receiver.requests, taken, strict=True):
            assert (got.method, got.path, got.body) == ("POST", "/sink?x=1", body)
            assert got.headers == headers | {"host": f"127.0.0.1:{receiver.port}", "content-length": str(len(body))}


def test_what_belongs_to_one_connection_or_to_the_gateway_alone_is_not_passed_on(tmp_path, making):
    token = "t0ken-of-the-gateway"
    with Receiver() as receiver, running(tmp_path / "events.db", access=Access(token), tee=making(receiver.url())) as served:
        secret = {"Authorization": f"Bearer {token}", "Cookie": "a=s3cret"}
        hop = {"Connection": "keep-alive, X-Mine", "X-Mine": "1", "TE": "trailers", "Proxy-Authorization": "Basic x"}
        assert served.ask("POST", f"/{token}", b"\x00\xff", ce() | secret | hop | {"X-Request-Id": "r1"})[0] == 200
        assert receiver.wait_for(1)
        (got,) = receiver.requests
        assert (got.path, got.body, got.headers["x-request-id"]) == ("/", b"\x00\xff", "r1")
        assert got.headers.keys() & {"authorization", "cookie", "connection", "x-mine", "te", "proxy-authorization"} == set()
        assert token not in repr(got)


def test_credentials_in_its_url_are_shown_to_the_receiver_and_to_nobody_else(making, caplog):
    with Receiver([Answer(403)]) as receiver:
        tee = making(f"http://us%20er:s3cret%21@127.0.0.1:{receiver.port}/t0ken?key=k3y", connections=1)
        tee.offer([*HEADERS, (b"authorization", b"Basic of-the-gateway")], b"{}")
        assert poll_until(lambda: tee.status()["failed"] == 1)
        (got,) = receiver.requests
        assert got.headers["authorization"] == f"Basic {base64.b64encode(b'us er:s3cret!').decode()}"
    assert f"copies for http://127.0.0.1:{receiver.port} are lost: it answered 403" in caplog.text
    for secret in ("s3cret", "t0ken", "k3y", "us%20er"):
        assert secret not in caplog.text + repr(TeeOptions(f"http://us%20er:s3cret@h/{secret}"))


def test_what_the_gateway_does_not_accept_is_not_copied(tmp_path, making):
    with Receiver() as receiver, running(tmp_path / "events.db", tee=making(receiver.url()), max_body=100) as served:
        served.ask("POST", "/", b"{}", ce("nope"))
        served.ask("POST", "/", bytes(101), ce())
        served.ask("POST", "/", b"# HELP", ce(RESPONSE, content_type=None))
        served.ask("POST", "/", b"last", ce())
        assert receiver.wait_for(1)
        time.sleep(0.1)
        assert [got.body for got in receiver.requests] == [b"last"]


def test_a_receiver_that_hangs_delays_no_acknowledgement_and_what_does_not_fit_is_dropped(tmp_path, making, caplog):
    with Receiver([HANG] * 50) as receiver:
        tee = making(receiver.url(), connections=2, timeout=0.5, max_events=5)
        with running(tmp_path / "events.db", tee=tee) as served:
            began = time.monotonic()
            for number in range(30):
                assert served.ask("POST", "/", b"%d" % number, ce())[0] == 200
            assert time.monotonic() - began < 5
            assert len(served.bodies()) == 30
            told = tee.status()
            assert told["dropped"] >= 18
            assert told["waiting"] <= 5
            assert poll_until(lambda: sum(tee.status().values()) == 30 and not tee.status()["waiting"], 10)
            assert tee.status()["sent"] == 0
    assert len([record for record in caplog.records if "copies" in record.getMessage()]) == 1, "once an episode"


def test_the_bytes_that_wait_are_bounded(making):
    with Receiver([HANG] * 20) as receiver:
        tee = making(receiver.url(), connections=1, max_bytes=1_000)
        tee.offer(HEADERS, bytes(10))
        assert receiver.wait_for(1)
        for _ in range(10):
            tee.offer(HEADERS, bytes(300))
        assert tee.status() == {"sent": 0, "failed": 0, "waiting": 2, "dropped": 8}


class Server(ThreadingHTTPServer):
    """An HTTP/1.1 server that keeps connections, and counts them; each ends after `requests`."""

    daemon_threads = True

    def __init__(self, requests=10**9):
        server = self
        self.connections, self.bodies = 0, []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            left = requests

            def setup(self):
                super().setup()
                server.connections += 1

            def do_POST(self):
                server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()
                self.left -= 1
                self.close_connection = not self.left

            def log_message(self, *_):
                return

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def test_a_connection_is_kept_for_many_events(making):
    with Server() as server:
        tee = making(f"http://127.0.0.1:{server.server_port}/", connections=1)
        for number in range(50):
            tee.offer(HEADERS, b"%d" % number)
        assert poll_until(lambda: tee.status()["sent"] == 50)
        assert server.bodies == [b"%d" % n for n in range(50)]
        assert server.connections == 1


def test_a_kept_connection_that_the_receiver_has_closed_costs_no_event(making):
    with Server(requests=3) as server:
        tee = making(f"http://127.0.0.1:{server.server_port}/", connections=1)
        for number in range(10):
            tee.offer(HEADERS, b"%d" % number)
            assert poll_until(lambda n=number: tee.status()["sent"] == n + 1)
        assert (tee.status()["failed"], server.bodies) == (0, [b"%d" % n for n in range(10)])


def test_a_receiver_that_comes_back_is_told_and_gets_the_next_events(making, caplog):
    port = free_port()
    tee = making(f"http://127.0.0.1:{port}/", connections=1)
    tee._trouble._quiet = 0.0
    for _ in range(3):
        tee.offer(HEADERS, b"lost")
    assert poll_until(lambda: tee.status()["failed"] == 3)
    with Receiver(port=port) as receiver:
        tee.offer(HEADERS, b"there")
        assert receiver.wait_for(1)
        assert poll_until(lambda: tee.status()["sent"] == 1)
    told = [record.getMessage() for record in caplog.records]
    assert [text.partition(":")[0] for text in told] == ["copies for http", "copies reach http"]
    assert "are lost: ConnectionRefusedError" in told[0]
    assert told[1].endswith("again, 3 were lost meanwhile")


def test_what_no_server_would_say_ends_no_thread(making):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble():
            for _ in range(3):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(b"\x00\x01 nonsense\r\n\r\n")

        threading.Thread(target=babble, daemon=True).start()
        tee = making(f"http://127.0.0.1:{listener.getsockname()[1]}/", connections=1)
        for body in (b"1", b"2", b"3"):
            tee.offer(HEADERS, body)
        assert poll_until(lambda: tee.status()["failed"] == 3)


def test_at_the_end_what_waits_is_posted_for_a_moment_and_the_rest_is_counted_as_dropped(making):
    with Receiver() as receiver:
        tee = making(receiver.url(), connections=2)
        for number in range(100):
            tee.offer(HEADERS, b"%d" % number)
        tee.close(5.0)
        assert tee.status() == {"sent": 100, "failed": 0, "dropped": 0, "waiting": 0}
        tee.offer(HEADERS, b"late")
        assert tee.status()["dropped"] == 1
    with Receiver([HANG] * 9) as receiver:
        tee = making(receiver.url(), connections=1)
        for number in range(5):
            tee.offer(HEADERS, b"%d" % number)
        assert receiver.wait_for(1)
        began = time.monotonic()
        tee.close(0.3)
        assert time.monotonic() - began < 2
        assert tee.status()["dropped"] == 4


@pytest.mark.parametrize("url", ["ftp://h/", "http://", "http://h:99999999/", "not a URL"])
def test_a_url_that_is_none_is_refused_without_being_shown(url):
    with pytest.raises(SettingsError, match=r"^gateway\.tee\.url must be an http:// or https:// URL$"):
        Tee(TeeOptions(url))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no certificate without openssl: {error}")
    return folder


def test_over_tls_the_receivers_certificate_is_checked(certificate, making, caplog, tmp_path):
    with Server() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = f"https://127.0.0.1:{server.server_port}/"
        trusting, distrusting = making(url, ca=certificate / "cert.pem", connections=1), making(url, connections=1)
        trusting.offer(HEADERS, b"1")
        distrusting.offer(HEADERS, b"2")
        assert poll_until(lambda: trusting.status()["sent"] == distrusting.status()["failed"] == 1)
        assert server.bodies == [b"1"]
        assert "SSLCertVerificationError" in caplog.text
    for ca in (tmp_path / "none.pem", certificate / "key.pem"):
        with pytest.raises(SettingsError, match="give a PEM file of authorities"):
            making(url, ca=ca)


def test_no_trouble_no_word(making, caplog):
    caplog.set_level(logging.DEBUG, logger="inference")
    with Receiver() as receiver:
        tee = making(receiver.url())
        tee.offer(HEADERS, b"{}")
        assert poll_until(lambda: tee.status()["sent"] == 1)
    assert caplog.records == []


def test_a_redirect_is_not_followed(making):
    with Receiver() as elsewhere, Receiver([Answer(307, {"Location": elsewhere.url()})]) as receiver:
        tee = making(receiver.url())
        tee.offer(HEADERS, b"{}")
        assert poll_until(lambda: tee.status()["failed"] == 1)
        assert elsewhere.requests == []
