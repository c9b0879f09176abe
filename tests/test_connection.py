"""How to reach a log: what may stand in a configuration, what another process is told, and tokens that do not make anybody wait."""

import json
import logging
import threading
import time
from types import SimpleNamespace

import pytest
from pydantic import SecretStr, ValidationError

from inference.errors import LogUnavailable, SettingsError
from inference.log import credentials
from inference.log.address import KafkaAddress
from inference.log.connection import VARIABLE, Connection, ConnectionString, Entra, Sasl, Tls, as_environment, connection_to
from inference.log.credentials import EntraTokens, default_credential, shared_key
from streaming.testing import poll_until

KEY = "s3cretKey="
STRING = f"Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=send;SharedAccessKey={KEY}"
ENTRA = Entra(kind="entra")


# What may stand in a configuration


def test_a_text_stands_for_an_address_and_nothing_else():
    assert Connection.model_validate("kafka://a:1/t") == Connection(url="kafka://a:1/t")
    assert Connection.model_validate("some/log.db").encrypted is False


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"url": "log.db", "client": "librdkafka"}, "client and api_version are for a kafka:// log"),
        ({"url": "log.db", "api_version": "1.0"}, "client and api_version are for a kafka:// log"),
        ({"url": "kafka://a", "api_version": "new"}, "api_version"),
        ({"url": "kafka://a", "websocket": True}, "websocket is for an eventhubs:// log"),
        ({"url": "log.db", "tls": True}, "auth and tls are for a log on the network"),
        ({"url": "kafka://a", "auth": {"kind": "sas_token", "token": KEY}}, "by AMQP only"),
        ({"url": "kafka://a", "auth": {"kind": "entra"}, "tls": False}, "goes over TLS only"),
        ({"url": "kafka://a", "auth": {"kind": "connection_string", "connection_string": STRING}, "tls": False}, "goes over TLS only"),
        ({"url": "kafka://a", "auth": {"kind": "sasl", "mechanism": "GSSAPI", "username": "u", "password": KEY}}, "mechanism"),
        ({"url": "kafka://a", "tls": {"certificate": "me.pem"}}, "certificate and key belong together"),
        ({"url": "eventhubs://a/hub"}, "needs auth of kind"),
        ({"url": "http://a"}, "eventhubs://"),
    ],
)
def test_what_does_not_fit_together_is_said(given, says):
    with pytest.raises(ValidationError) as caught:
        Connection.model_validate(given)
    assert says in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "encrypted"),
    [({}, False), ({"tls": True}, True), ({"tls": {}}, True), ({"auth": ENTRA}, True), ({"auth": ENTRA, "tls": {"ca": "ca.pem"}}, True)],
)
def test_tls_is_on_where_somebody_logs_in(given, encrypted):
    assert Connection.model_validate({"url": "kafka://a", **given}).encrypted is encrypted


def test_a_user_may_log_in_without_tls_where_that_is_asked_for():
    sasl = Sasl(kind="sasl", username="u", password=SecretStr("p"))
    assert Connection(url="kafka://a", auth=sasl).encrypted
    assert not Connection(url="kafka://a", auth=sasl, tls=False).encrypted


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("kafka://a", ("a:9092",)),
        ("kafka://a:1,b", ("a:1", "b:9092")),
        ("kafka://ns.servicebus.windows.net/hub", ("ns.servicebus.windows.net:9093",)),
        ("kafka://[::1]", ("[::1]:9092",)),
        ("kafka://[::1]:1", ("[::1]:1",)),
    ],
)
def test_an_address_has_a_port_by_default(url, servers):
    assert KafkaAddress.parse(url).servers == servers


@pytest.mark.parametrize("url", ["kafka://a:", "kafka://a:b", "kafka://a:0", "kafka://a:70000", "kafka://:1", "kafka://a:²"])
def test_a_port_that_is_none_is_an_error(url):
    with pytest.raises(SettingsError, match="is no HOST:PORT"):
        KafkaAddress.parse(url)


def test_paths_are_taken_from_the_folder_that_they_are_written_in(tmp_path):
    tls = Tls(ca="ca.pem", certificate="/etc/me.pem", key="../me.key")
    placed = Connection(url="kafka://a:1", tls=tls).placed(tmp_path).tls
    assert (str(placed.ca), str(placed.certificate), str(placed.key)) == (f"{tmp_path}/ca.pem", "/etc/me.pem", f"{tmp_path.parent}/me.key")
    assert (
        Connection(url="log.db").placed(tmp_path).url
        == Connection(url="embedded:log.db").placed(tmp_path).url
        == f"embedded:{tmp_path}/log.db"
    )
    assert Connection(url="kafka://a:1", tls=True).placed(tmp_path) == Connection(url="kafka://a:1", tls=True)


@pytest.mark.parametrize(
    ("string", "says"),
    [
        ("", "Endpoint, SharedAccessKeyName, SharedAccessKey is missing"),
        (STRING.replace("SharedAccessKeyName=send;", ""), "connection_string: SharedAccessKeyName is missing"),
        (STRING.replace(KEY, ""), "connection_string: SharedAccessKey is missing"),
        (f"{KEY};{STRING.partition(';')[2]}", "connection_string: Endpoint is missing"),
        (f"{STRING};EntityPath=other", "is for the event hub 'other', and the log's address names 'hub'"),
    ],
)
def test_what_a_connection_string_lacks_is_named_without_its_values(string, says):
    with pytest.raises(SettingsError) as caught:
        shared_key(ConnectionString(connection_string=SecretStr(string)), "hub")
    assert says in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("string", [STRING, f" {STRING}\n", f"{STRING};EntityPath=hub", f"{STRING};"])
def test_a_connection_string_is_taken_apart_and_its_key_is_not_shown(string):
    key = shared_key(ConnectionString(connection_string=SecretStr(string)), "hub")
    assert (key.host, key.name, key.key) == ("ns.servicebus.windows.net", "send", KEY)
    assert KEY not in repr(key)


# What another process is told


FULL = Connection(
    url="kafka://ns.servicebus.windows.net:9093/hub",
    client="librdkafka",
    auth=ConnectionString(connection_string=SecretStr(STRING)),
    tls=Tls(ca="/etc/ca.pem", certificate="me.pem", key="me.key", key_password=SecretStr("pässword")),
    api_version="1.0",
)


@pytest.mark.parametrize("connection", [FULL, Connection(url="kafka://a:1/t", auth=ENTRA), Connection(url="log.db")])
def test_a_process_that_is_told_only_the_address_finds_the_rest_in_its_environment(monkeypatch, connection):
    for name, value in as_environment(connection).items():
        monkeypatch.setenv(name, value)
    assert connection_to(connection.url) == connection
    assert connection_to("kafka://other:1/t") == Connection(url="kafka://other:1/t")


def test_secrets_are_in_the_variable_and_nowhere_else():
    assert KEY in as_environment(FULL)[VARIABLE]
    assert "pässword" in json.loads(as_environment(FULL)[VARIABLE])["tls"]["key_password"]
    assert KEY not in repr(FULL) + str(FULL) + FULL.model_dump_json()


@pytest.mark.parametrize("told", [KEY, '{"url": "kafka://a", "auth": {"kind": "none", "password": "s3cretKey="}}', '{"url": "kafka://"}'])
def test_a_variable_that_will_not_do_is_named_and_not_shown(monkeypatch, told):
    monkeypatch.setenv(VARIABLE, told)
    with pytest.raises(SettingsError, match=VARIABLE) as caught:
        connection_to("kafka://a")
    assert KEY not in str(caught.value)


# Tokens


class Identity:
    """Stands in for azure-identity: numbers its tokens, each good for `lifetime` seconds of `clock`."""

    def __init__(self, lifetime=3600.0):
        self.now, self.lifetime, self.scopes, self.error = 1_000_000.0, lifetime, [], None
        self.open = threading.Event()
        self.open.set()

    def clock(self):
        return self.now

    def get_token(self, *scopes):
        self.scopes += scopes
        number = len(self.scopes)
        assert self.open.wait(10)
        if self.error:
            raise self.error
        return SimpleNamespace(token=f"token-{number}", expires_on=self.now + self.lifetime)


@pytest.fixture
def identity():
    return Identity()


@pytest.fixture
def tokens(identity):
    return EntraTokens(ENTRA, "ns.servicebus.windows.net:9093", credential=identity, clock=identity.clock)


def test_a_token_is_for_the_namespace_and_is_kept(identity, tokens):
    assert [tokens.token() for _ in range(5)] == ["token-1"] * 5
    assert identity.scopes == ["https://ns.servicebus.windows.net/.default"]
    assert tokens.until == identity.now + 3600


def test_nobody_waits_for_the_next_token_while_the_old_one_holds(identity, tokens):
    tokens.token()
    identity.now += 3000
    identity.open.clear()
    assert [tokens.token() for _ in range(3)] == ["token-1"] * 3
    identity.open.set()
    assert poll_until(lambda: tokens.token() == "token-2")
    assert len(identity.scopes) == 2


def test_the_last_minute_of_a_token_is_not_used(identity, tokens):
    tokens.token()
    identity.now += 3550
    assert tokens.token() == "token-2"


def test_a_token_that_holds_serves_on_when_there_is_no_new_one(identity, tokens, caplog):
    tokens.token()
    identity.now += 3570
    identity.error = RuntimeError("AADSTS700016: the application was not found\nmore of it")
    with caplog.at_level(logging.WARNING):
        assert tokens.token() == "token-1"
    assert "cannot be renewed yet, the old one holds for 30 s more: AADSTS700016" in caplog.text
    assert "token-1" not in caplog.text
    identity.now += 31
    with pytest.raises(LogUnavailable, match="AADSTS700016: the application was not found; give this workload an identity") as caught:
        tokens.token()
    assert "more of it" not in str(caught.value)
    identity.error = None
    assert tokens.token() == f"token-{len(identity.scopes)}"


def test_an_identity_service_that_does_not_answer_is_not_waited_for(identity, tokens, monkeypatch):
    monkeypatch.setattr(credentials, "_PATIENCE", 0.2)
    identity.open.clear()
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match=r"no Entra token for https://ns.*no answer within"):
        tokens.token()
    assert time.monotonic() - began < 5
    identity.open.set()
    assert tokens.token() == "token-1"


def test_many_threads_have_one_token(identity, tokens):
    found = []
    threads = [threading.Thread(target=lambda: found.append(tokens.token())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["token-1"] * 8
    assert len(identity.scopes) == 1


@pytest.mark.parametrize(
    ("environment", "client_id", "kind"),
    [
        ({}, None, "DefaultAzureCredential"),
        ({}, "me", "ManagedIdentityCredential"),
        ({"AZURE_CLIENT_ID": "me"}, None, "WorkloadIdentityCredential"),
        ({"AZURE_CLIENT_ID": "another"}, "me", "WorkloadIdentityCredential"),
    ],
)
def test_the_workloads_own_identity_comes_first_then_the_one_that_is_named(monkeypatch, environment, client_id, kind):
    pytest.importorskip("azure.identity", reason="azure-identity is not installed (extra `azure`)")
    on_aks = {"AZURE_TENANT_ID": "tenant", "AZURE_FEDERATED_TOKEN_FILE": "/var/run/token"} if environment else {}
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (on_aks | environment).items():
        monkeypatch.setenv(name, value)
    assert type(default_credential(Entra(kind="entra", client_id=client_id))).__name__ == kind
