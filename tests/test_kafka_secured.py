"""A real Kafka that wants to know who we are: SCRAM over TLS, client certificates, and rights on topics and groups."""

import shutil
from types import SimpleNamespace

import pytest
from certificates import Authority
from pydantic import SecretStr

from inference.errors import LogUnavailable
from inference.event import Event
from inference.log import open_feed, open_log
from inference.log.connection import Connection, Sasl, Tls
from streaming.reader import everything
from streaming.testing import free_port, poll_until

CLIENTS = ["kafka-python", "librdkafka"]
SECRET = "wonderland"
PROPERTIES = """
listeners=PLAINTEXT://{{host}}:{{port}},USERS://{{host}}:{users},CERTIFICATES://{{host}}:{certificates},CONTROLLER://{{host}}:{{controller}}
advertised.listeners=PLAINTEXT://{{host}}:{{port}},USERS://{{host}}:{users},CERTIFICATES://{{host}}:{certificates}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_SSL,CERTIFICATES:SSL
inter.broker.listener.name=PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.both
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
listener.name.users.sasl.enabled.mechanisms=SCRAM-SHA-512,SCRAM-SHA-256
listener.name.users.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.users.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.certificates.ssl.client.auth=required
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""


def event(number):
    return Event(f"e{number}", "pod-1", "t", extensions={"namespace": "ns", "inferenceservicename": "m"})


@pytest.fixture(scope="module")
def secured(broker, tmp_path_factory):
    """A broker with three listeners: plain for the administrator, SCRAM over TLS, and client certificates."""
    from kafka import KafkaAdminClient
    from kafka.admin import ACL, ACLOperation, ACLPermissionType, NewTopic, ResourcePattern, ResourceType, UserScramCredentialUpsertion

    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder)
    certificate, key = authority.files("127.0.0.1")
    (folder / "server.both").write_bytes(key.read_bytes() + certificate.read_bytes())
    users, certificates = free_port(), free_port()
    (folder / "more.properties").write_text(PROPERTIES.format(folder=folder, users=users, certificates=certificates))
    try:
        started = broker("start", "--port", 0, "--folder", folder / "broker", "--detach", "--properties", folder / "more.properties")
        assert started.returncode == 0, started.stdout + started.stderr
        address = started.stdout.split()[-1]
        admin = KafkaAdminClient(bootstrap_servers=address)
        admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=1) for topic in ("open", "readable", "hidden")])
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            told = admin.alter_user_scram_credentials([UserScramCredentialUpsertion("alice", mechanism, SECRET)])
            assert told == {"alice": None}

        def allow(operation, kind, name):
            return ACL("User:alice", "*", operation, ACLPermissionType.ALLOW, ResourcePattern(kind, name))

        admin.create_acls(
            [
                *(allow(operation, ResourceType.TOPIC, "open") for operation in (ACLOperation.READ, ACLOperation.WRITE)),
                allow(ACLOperation.READ, ResourceType.TOPIC, "readable"),
                allow(ACLOperation.READ, ResourceType.GROUP, "watchers"),
            ]
        )
        admin.close()
        yield SimpleNamespace(address=address, users=f"127.0.0.1:{users}", certificates=f"127.0.0.1:{certificates}", authority=authority)
    finally:
        broker("stop", "--folder", folder / "broker")
        shutil.rmtree(folder / "broker", ignore_errors=True)


def alice(secured, topic, client="kafka-python", mechanism="SCRAM-SHA-512", password=SECRET):
    auth = Sasl(kind="sasl", mechanism=mechanism, username="alice", password=SecretStr(password))
    return Connection(url=f"kafka://{secured.users}/{topic}", client=client, auth=auth, tls=Tls(ca=secured.authority.ca))


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("client", CLIENTS)
def test_a_user_logs_in_by_scram_over_tls(secured, client, mechanism):
    log = open_log(alice(secured, "open", client, mechanism))
    start = log.end_positions()
    log.append([event(number) for number in range(20)])
    assert [record.event.id for record in log.read(start)] == [f"e{number}" for number in range(20)]
    log.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_wrong_password_is_said_and_not_shown(secured, client):
    said = r"refused the credentials: check `log\.auth`"
    if client == "kafka-python":
        # The broker hangs up right behind its refusal. Read together with the end of the connection, as a busy machine does, it is dropped.
        said += r"|the broker hung up: .*`auth`"
    with pytest.raises(LogUnavailable, match=said) as caught:
        open_log(alice(secured, "open", client, password="wrongpassword"))
    assert "wrongpassword" not in str(caught.value)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_topic_without_rights_is_not_there_or_not_permitted(secured, client):
    with pytest.raises(LogUnavailable, match=r"not permitted|there is no topic 'hidden'"):
        open_log(alice(secured, "hidden", client))


def test_the_broker_tells_whether_we_may_write(secured):
    for topic, permitted in (("open", True), ("readable", False)):
        log = open_log(alice(secured, topic))
        assert log.may_write() is permitted
        log.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_writing_without_the_right_to_says_so(secured, client):
    log = open_log(alice(secured, "readable", client))
    with pytest.raises(LogUnavailable, match=r"not permitted.* write the topic"):
        log.append([event(1)])
    assert list(everything(log)) == []
    log.close()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_group_without_rights_is_named_and_the_permitted_one_works(secured, client):
    connection = alice(secured, "open", client)
    log = open_log(connection)
    log.append([event(1)])
    owner = SimpleNamespace(assigned=lambda _: {}, revoked=lambda _: None, lost=lambda _: None)
    feed = open_feed(connection, log, owner, group="watchers", session=6.0)
    assert poll_until(lambda: feed.poll(10, 0.2), timeout=20)
    feed.close()

    def told():
        feed = open_feed(connection, log, owner, group="others", session=6.0)
        try:
            return poll_until(lambda: feed.poll(10, 0.2), timeout=8)
        finally:
            feed.close()

    with pytest.raises(LogUnavailable, match=r"not permitted.*group"):
        told()
    log.close()


def test_a_client_certificate_says_who_we_are(secured):
    certificate, key = secured.authority.files("alice")
    url = f"kafka://{secured.certificates}/open"
    with pytest.raises(LogUnavailable, match=r"the broker wants to know who we are: give `log\.tls\.certificate`"):
        open_log(Connection(url=url, tls=Tls(ca=secured.authority.ca)))
    # Known to the broker, but as somebody who has no rights.
    with pytest.raises(LogUnavailable, match=r"not permitted|there is no topic"):
        open_log(Connection(url=url, tls=Tls(ca=secured.authority.ca, certificate=certificate, key=key)))
