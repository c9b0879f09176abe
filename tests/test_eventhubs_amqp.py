"""Event Hubs by AMQP: what only it has, against a double of the service; what all logs have is in test_log_contract.py."""

import ipaddress
import logging
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from amqp_double import AmqpDouble
from azure.core.credentials import AccessToken
from azure.eventhub._pyamqp.message import Message, Properties
from azure.eventhub.exceptions import ConnectError
from kafka.partitioner.default import DefaultPartitioner

from inference.errors import EventError, LogCorrupt, LogThrottled, LogUnavailable, SettingsError
from inference.event import Event, to_kafka
from inference.log import eventhubs_client, open_log
from inference.log.connection import Connection
from inference.log.eventhubs import UNTOLD, EventHubsLog
from inference.log.eventhubs_client import to_message
from inference.log.eventhubs_receiver import Receiver
from streaming.reader import everything
from streaming.testing import free_port, poll_until


def event(number, model="ns/m", data=b"{}"):
    namespace, _, name = model.partition("/")
    extensions = {"namespace": namespace, "inferenceservicename": name, "metadata": '{"A":["ü %41"]}'}
    return Event(f"e{number}", "pod-1", "io.driftloop.label", "2026-10-01T00:00:00Z", "application/json", extensions, data)


def connection(double, hub="hub", *, auth=None, **more):
    auth = auth or {"kind": "connection_string", "connection_string": double.connection_string}
    return Connection(url=f"eventhubs://127.0.0.1:{double.port}/{hub}", auth=auth, **{"tls": False, **more})


def message_of(one):
    sent = to_message(one)
    return Message(properties=Properties(content_type=sent.content_type), application_properties=sent.properties, data=[one.data])


@pytest.fixture
def double():
    with AmqpDouble({"hub": 3}) as running:
        yield running


@pytest.fixture
def log(double):
    opened = open_log(connection(double))
    yield opened
    opened.close()


def ids(records):
    return [record.event.id for record in records]


def all_ids(log):
    return [id_ for batch in everything(log) for id_ in ids(batch)]


# One hub, two endpoints


def test_an_event_stands_on_the_hub_as_the_kafka_endpoint_would_have_put_it(double, log):
    log.append([event(1)])
    [message] = double.messages("hub", log.partition_of("ns/m"))
    _, headers, value = to_kafka(event(1))
    kafka = {name.encode(): value for name, value in headers if name != "content-type"}
    assert message.application_properties == kafka
    assert message.properties.content_type == b"application/json"
    assert b"".join(message.data) == value
    # Text would come out of the Kafka endpoint in AMQP's encoding, 0xa1 and its length before it; binary is what a header is.
    [(raw, _)] = double.hubs["hub"][log.partition_of("ns/m")].events
    assert b"\xa1\x05ce_id\xa0\x02e1" in raw


def test_what_came_in_by_the_kafka_endpoint_is_read_as_the_same_event(double, log):
    _, headers, value = to_kafka(event(1))
    double.append("hub", 0, Message(application_properties=dict(headers), data=[value]))
    assert [record.event for record in log.read({0: 0})] == [event(1)]


def test_the_names_of_cloudevents_amqp_binding_are_read_too(double, log):
    attributes = {"specversion": "1.0", "id": "e1", "source": "pod-1", "type": "io.driftloop.label", "time": "2026-10-01T00:00:00Z"}
    attributes |= event(1).extensions
    for prefix in ("cloudEvents:", "cloudEvents_"):
        properties = {f"{prefix}{name}": value for name, value in attributes.items()}
        message = Message(properties=Properties(content_type="application/json"), application_properties=properties, data=[b"{}"])
        double.append("hub", 0, message)
    assert [record.event for record in log.read({0: 0})] == [event(1)] * 2


def test_what_is_no_cloudevent_keeps_its_place_and_hides_nothing(double, log):
    log.append([event(1)])
    place = log.partition_of("ns/m")
    no_data = message_of(event(9))._replace(data=None, value=[1, 2])
    double.append("hub", place, Message(data=[b"no event"]), no_data)
    log.append([event(2)])
    records = log.read({place: 0})
    assert [record.offset for record in records] == [0, 1, 2, 3]
    assert [record.event.type for record in records[1:3]] == ["io.driftloop.unreadable"] * 2
    assert ids([records[0], records[3]]) == ["e1", "e2"]


def test_a_model_has_the_partition_that_kafkas_clients_would_choose(log):
    numbers = [0, 1, 2]
    topic = SimpleNamespace(
        topics=lambda: ["hub"], partitions_for_topic=lambda _: numbers, available_partitions_for_topic=lambda _: numbers
    )
    for model in [f"ns/model-{number}" for number in range(50)]:
        assert log.partition_of(model) == DefaultPartitioner().partition("hub", None, model.encode(), None, b"", topic)


# Appending


def test_appending_tells_the_partition_and_that_the_offset_is_not_told(log):
    assert log.append([event(1)]) == [(log.partition_of("ns/m"), UNTOLD)]


def test_more_than_one_message_may_hold_goes_in_several_and_in_order(double, log):
    events = [event(number, f"ns/m{number % 4}", b"x" * 200_000) for number in range(24)]
    log.append(events)
    assert 5 <= double.counts["sends"] <= 8
    records = [record for batch in everything(log) for record in batch]
    assert len(records) == 24
    for model in {one.model for one in events}:
        assert ids(r for r in records if r.event.model == model) == [one.id for one in events if one.model == model]


def test_the_size_that_the_service_takes_counts_and_nothing_is_appended_when_one_is_larger():
    with AmqpDouble({"hub": 2}, max_message=256 * 1024) as basic:
        log = open_log(connection(basic))
        with pytest.raises(EventError, match=r"'e3' has 300000 bytes of data, and the hub takes 262144") as caught:
            log.append([event(1), event(2), event(3, "ns/other", b"x" * 300_000)])
        assert caught.value.reason == "too_large"
        assert log.end_positions() == {0: 0, 1: 0}
        log.append([event(4, data=b"x" * 200_000)])
        assert all_ids(log) == ["e4"]
        log.close()


def test_a_throttled_append_says_so_and_the_next_one_works(double, log):
    log.append([event(0)])
    double.busy = 100
    with pytest.raises(LogThrottled, match="throttled by the service"):
        log.append([event(1)])
    double.busy = 0
    log.append([event(2)])
    assert all_ids(log) == ["e0", "e2"]


def test_one_refusal_is_tried_again_at_once(double, log):
    log.append([event(1)])
    double.busy = 1
    log.append([event(2)])
    assert double.counts["throttled"] == 1
    assert all_ids(log) == ["e1", "e2"]


@pytest.mark.parametrize("how", ["detached for being idle", "cut"])
def test_a_sender_whose_connection_went_away_sends_once_all_the_same(double, log, how):
    log.append([event(1)])
    if how == "cut":
        double.cut()
    else:
        double.detach("hub", "amqp:link:detach-forced")
    log.append([event(2)])
    assert all_ids(log) == ["e1", "e2"]


def test_an_append_to_a_service_that_falls_silent_ends_in_time_and_the_next_one_works(double, log, monkeypatch):
    monkeypatch.setattr("inference.log.eventhubs._SEND_SECONDS", 0.5)
    monkeypatch.setattr("inference.log.eventhubs._APPEND_SECONDS", 1.0)
    log.append([event(1)])
    double.mute = True
    double.cut()
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match="no answer within 1 s"):
        log.append([event(2)])
    assert time.monotonic() - began < 5
    double.mute = False
    double.cut()
    log.append([event(3)])
    # Whether the second arrived after all is open: an append that failed may be repeated, and readers drop doubles.
    assert [id_ for id_ in all_ids(log) if id_ != "e2"] == ["e1", "e3"]


# Who we are, and what is wrong


class Token:
    """Stands in for azure-identity: gives the token that it was given."""

    def __init__(self, token, lifetime=3600):
        self._token, self._lifetime = token, lifetime

    def get_token(self, *scopes, **_):
        assert scopes == ("https://eventhubs.azure.net//.default",)
        if not self._token:
            raise ConnectionError("no identity was found\nTo mitigate this issue, ...")
        return AccessToken(self._token, int(time.time()) + self._lifetime)


def test_an_entra_token_is_a_way_in(double):
    log = EventHubsLog(connection(double, auth={"kind": "entra"}), credential=Token(double.jwt))
    log.append([event(1)])
    assert all_ids(log) == ["e1"]
    log.close()


def test_an_identity_that_is_missing_is_told_at_the_start(double):
    with pytest.raises(LogUnavailable, match="no Entra token: no identity was found; give this workload an identity"):
        EventHubsLog(connection(double, auth={"kind": "entra"}), credential=Token(""))
    assert double.counts["connections"] == 0


@pytest.mark.slow
def test_a_token_that_expired_while_nothing_was_done_is_replaced(double):
    log = EventHubsLog(connection(double, auth={"kind": "entra"}), credential=Token(double.jwt, lifetime=2))
    log.append([event(1)])
    place = log.partition_of("ns/m")
    assert ids(log.read({place: 0})) == ["e1"]
    time.sleep(2.5)
    log.append([event(2)])
    assert ids(log.read({place: 1})) == ["e2"]
    log.close()


def test_a_sas_token_is_a_way_in(double):
    log = open_log(connection(double, auth={"kind": "sas_token", "token": double.sas("hub")}))
    log.append([event(1)])
    assert all_ids(log) == ["e1"]
    log.close()


@pytest.mark.parametrize("kind", ["key", "expired", "foreign", "entra"])
def test_wrong_credentials_are_told_within_seconds_and_never_shown(double, kind, caplog):
    caplog.set_level(logging.DEBUG)
    credential, secret = None, "d3Jvbmcta2V5LXdpdGgtYS1zZWNyZXQ"
    if kind == "key":
        text = double.connection_string.replace(double.key, secret)
        auth = {"kind": "connection_string", "connection_string": text}
    elif kind == "entra":
        auth, credential = {"kind": "entra"}, Token(secret)
    else:
        token = double.sas("hub", lifetime=-60 if kind == "expired" else 3600)
        secret = token.partition("sig=")[2][:20]
        if kind == "foreign":
            token = token.replace("%2Fhub", "%2Fanother")
        auth = {"kind": "sas_token", "token": token}
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match=r"the service refused the credentials: check `log\.auth`") as caught:
        EventHubsLog(connection(double, auth=auth), credential=credential)
    assert time.monotonic() - began < 8
    assert secret not in f"{caught.value!r} {caught.value.__cause__!r} {caplog.text}"


def test_nothing_that_is_logged_on_the_way_has_a_secret_in_it(double, caplog):
    for name in (None, "azure", "azure.eventhub"):
        caplog.set_level(logging.DEBUG, logger=name)
    log = open_log(connection(double))
    log.append([event(1)])
    assert all_ids(log) == ["e1"]
    log.close()
    assert len(caplog.records) > 10
    assert double.key not in caplog.text
    assert "sig=" not in caplog.text
    assert double.key not in repr(vars(log.hub))


def test_what_the_service_says_is_passed_on_without_a_signature_in_it(double, log):
    error = log.hub.told(ConnectError("no good: SharedAccessSignature sr=x&sig=s3cret%3D&se=1 and SharedAccessKey=k3y;x\nError: again"))
    assert "sr=x&sig=***&se=1 and SharedAccessKey=***;x)" in str(error)


@pytest.mark.parametrize(
    ("hub", "text", "said"),
    [
        ("hub", "{};EntityPath=other", "for the event hub 'other', and the log's address names 'hub'"),
        ("hub", "Endpoint=sb://elsewhere/;SharedAccessKeyName=a;SharedAccessKey=b", "for the namespace 'elsewhere'"),
        ("hub", "Endpoint=sb://127.0.0.1/;SharedAccessKeyName=a", "SharedAccessKey is missing"),
    ],
)
def test_a_connection_string_that_does_not_fit_is_refused_before_anything_is_tried(double, hub, text, said):
    auth = {"kind": "connection_string", "connection_string": text.format(double.connection_string)}
    with pytest.raises(SettingsError, match=said):
        open_log(connection(double, hub, auth=auth))
    assert double.counts["connections"] == 0


def test_a_hub_that_is_not_there_and_a_host_that_is_not_there_are_told_within_seconds(double):
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match="there is no event hub 'nowhere' in this namespace"):
        open_log(connection(double, "nowhere"))
    away = SimpleNamespace(port=free_port(), connection_string=double.connection_string)
    with pytest.raises(LogUnavailable, match="may this machine reach it on port 5671"):
        open_log(connection(away))
    assert time.monotonic() - began < 15


@pytest.mark.slow
def test_a_peer_that_never_answers_ends_in_time_and_costs_a_bounded_number_of_threads(double, log, monkeypatch):
    monkeypatch.setattr(eventhubs_client, "_ASK_SECONDS", 0.3)
    double.mute = True
    before = threading.active_count()
    for _ in range(12):
        with pytest.raises(LogUnavailable, match=r"no answer within 0\.3 s|have not been answered yet"):
            log.end_positions()
    assert threading.active_count() - before <= eventhubs_client._LEFT_BEHIND + eventhubs_client._AT_ONCE
    double.mute = False
    double.cut()
    assert poll_until(lambda: threading.active_count() <= before, 15)
    monkeypatch.undo()
    assert log.end_positions() == {0: 0, 1: 0, 2: 0}


# Ways there


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that signs itself, and what a server does with it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "double")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = builder.add_extension(names, critical=False).add_extension(x509.BasicConstraints(True, None), critical=True)
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ca.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return SimpleNamespace(ca=folder / "ca.pem", key=folder / "key.pem", server=server)


@pytest.mark.parametrize("websocket", [False, True])
def test_tls_and_web_sockets_lead_there_and_a_stranger_is_not_trusted(certificate, websocket):
    with AmqpDouble({"hub": 2}, tls=certificate.server, websocket=websocket) as double:
        log = open_log(connection(double, tls={"ca": str(certificate.ca)}, websocket=websocket))
        log.append([event(number, f"ns/m{number}", b"x" * 70_000) for number in range(6)])
        assert sorted(all_ids(log)) == [f"e{number}" for number in range(6)]
        log.close()
        with pytest.raises(LogUnavailable, match=r"not trusted: name its authority in `log\.tls\.ca`"):
            open_log(connection(double, tls=True, websocket=websocket))


def test_a_client_certificate_is_refused_since_event_hubs_knows_none(double, certificate):
    with pytest.raises(SettingsError, match="no client certificates"):
        open_log(connection(double, tls={"certificate": str(certificate.ca), "key": str(certificate.key)}))


# Reading


def test_what_retention_dropped_is_passed_over_and_an_emptied_partition_is_at_its_end(double, log):
    log.append([event(number) for number in range(10)])
    place = log.partition_of("ns/m")
    double.forget("hub", place, 4)
    assert log.start_positions()[place] == 4
    assert log.wait_for({place: 1}, 0.0) is True
    assert [record.offset for record in log.read({place: 1})] == [4, 5, 6, 7, 8, 9]
    double.forget("hub", place, 10)
    assert log.start_positions()[place] == log.end_positions()[place] == 10
    assert log.wait_for({place: 3}, 0.0) is False
    began = time.monotonic()
    assert log.read({place: 2}) == []
    assert all_ids(log) == []
    assert time.monotonic() - began < 8


def test_a_position_beyond_the_end_is_of_another_hub(log):
    with pytest.raises(LogCorrupt, match="position 7 of partition 0 lies beyond its end 0"):
        log.read({0: 7})


def test_what_stands_there_and_does_not_come_is_told_unless_retention_has_dropped_it(double, log, monkeypatch):
    monkeypatch.setattr("inference.log.eventhubs._READ_SECONDS", 1.0)
    assert log.read({0: 0}) == []
    assert poll_until(double.receivers)
    double.fall_silent()
    double.append("hub", 0, message_of(event(1)))
    with pytest.raises(LogUnavailable, match="what stands on the hub did not come within 1 s"):
        log.read({0: 0})
    threading.Timer(0.3, double.forget, ("hub", 0, 1)).start()
    assert log.read({0: 0}) == []


def test_a_long_stretch_is_read_without_asking_where_it_ends_each_time(double, log):
    log.append([event(number, f"ns/m{number % 9}") for number in range(900)])
    positions = log.start_positions()
    before, read = double.counts["questions"], []
    while records := log.read(positions, 50):
        read += records
        positions |= {record.partition: record.offset + 1 for record in records}
    assert len(read) == 900
    # Three partitions at the beginning, and three when nothing was left.
    assert double.counts["questions"] - before <= 6


def test_a_partition_that_is_not_there_is_no_reason_to_wait(log):
    with pytest.raises(LogCorrupt, match="a position names partition 3, and the hub has 3 partitions"):
        log.read({0: 0, 3: 0})


def test_going_back_again_and_again_is_one_reader_at_a_time(double, log):
    log.append([event(number) for number in range(20)])
    place = log.partition_of("ns/m")
    for number in range(4):
        assert log.read({place: number}, 1)[0].offset == number
        assert log.read({place: 19 - number}, 1)[0].offset == 19 - number
    assert double.counts["receivers"] == 8
    assert double.counts["readers at once"] == 1


def test_reading_goes_on_after_a_cut_without_a_gap_or_a_double(double, log):
    log.append([event(number) for number in range(50)])
    place = log.partition_of("ns/m")
    positions, read = {place: 0}, []
    for _ in range(4):
        records = log.read(positions, 7)
        read += records
        positions = {place: records[-1].offset + 1}
        double.cut()
        log.append([event(50 + len(read))])
    while records := log.read(positions, 7):
        read += records
        positions = {place: records[-1].offset + 1}
    assert [record.offset for record in read] == list(range(54))


@pytest.mark.slow
def test_what_was_appended_is_read_however_long_nothing_came():
    with AmqpDouble({"hub": 2}, idle=1.0) as double:
        log = open_log(connection(double))
        end = log.end_positions()
        assert log.wait_for(end, 3.0) is False
        attached = double.counts["receivers"]
        double.append("hub", 0, message_of(event(1)))
        assert log.wait_for(end, 5.0) is True
        assert ids(log.read(end)) == ["e1"]
        # The SDK keeps an idle connection alive by itself: nothing was connected anew.
        assert double.counts["receivers"] == attached == 2
        log.close()


def test_an_event_of_many_frames_comes_whole(log):
    body = bytes(range(256)) * 3_500
    log.append([event(1, data=body), event(2)])
    [first, second] = log.read({log.partition_of("ns/m"): 0})
    assert first.event.data == body
    assert second.event.id == "e2"


@pytest.mark.slow
def test_a_reader_that_takes_nothing_holds_a_bounded_number(double, log):
    place = log.partition_of("ns/m")
    for start in range(0, 6_000, 1_000):
        log.append([event(number) for number in range(start, start + 1_000)])
    changed = threading.Condition()
    receiver = Receiver(log.hub, "$Default", place, 0, changed)
    assert poll_until(lambda: receiver.full, 20)
    time.sleep(0.3)
    assert 2_000 <= receiver.waiting <= 2_300
    taken = []
    assert poll_until(lambda: taken.extend(receiver.take(500)) or len(taken) == 6_000, 20)
    assert [record.offset for record in taken] == list(range(6_000))
    receiver.close()


def test_large_events_count_by_their_size(double, log):
    place = log.partition_of("ns/m")
    for number in range(30):
        log.append([event(number, data=b"x" * 900_000)])
    receiver = Receiver(log.hub, "$Default", place, 0, threading.Condition())
    assert poll_until(lambda: receiver.full, 20)
    assert receiver.waiting <= 30
    receiver.close()


def test_closing_is_quick_and_leaves_nothing(double):
    before = threading.active_count()
    log = open_log(connection(double))
    log.append([event(number, f"ns/m{number}") for number in range(9)])
    assert len(all_ids(log)) == 9
    # Only one thread reads from a receiver's socket: the SDK's own second one could swap two messages.
    assert not [thread.name for thread in threading.enumerate() if "keep_alive" in thread.name]
    began = time.monotonic()
    log.close()
    assert time.monotonic() - began < 3
    assert poll_until(lambda: threading.active_count() <= before and not double.open, 5)


def test_a_sixth_reader_is_told_that_five_may_read(double):
    logs = [open_log(connection(double)) for _ in range(6)]
    logs[0].append([event(1)])
    place = logs[0].partition_of("ns/m")
    assert [ids(log.read({place: 0})) for log in logs[:5]] == [["e1"]] * 5
    with pytest.raises(LogUnavailable, match="at most 5 may read a partition in the consumer group"):
        logs[5].read({place: 0})
    logs[0].close()
    assert poll_until(lambda: len(double.receivers()) == 4)
    assert ids(logs[5].read({place: 0})) == ["e1"]
    for log in logs[1:]:
        log.close()
