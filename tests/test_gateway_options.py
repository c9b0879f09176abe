"""How the gateway is run: from the configuration, from the command line, and which of them counts."""

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inference.errors import SettingsError
from inference.gateway_server import GatewayOptions
from streaming.gateway_options import gateway_options
from streaming.settings import load_gateway, load_settings
from streaming.testing import Receiver, free_port, poll_until

ROOT = Path(__file__).parents[1]
WHOLE = """\
log:
  url: kafka://broker:9093/events
  auth: {kind: sasl, username: gateway, password: "${KAFKA_PASSWORD}"}
gateway:
  host: 0.0.0.0
  port: 9000
  spool: waiting
  spool_bytes: 5_000_000
  drain: 1m
  max_body: 2000
  token: ${GATEWAY_TOKEN}
  close_connections: true
  tee: {url: "http://user:${TEE_PASSWORD}@trusty/consumer", timeout: 2s, connections: 3, max_events: 10, max_bytes: 1000, ca: ca.pem}
models:
  default/iris:
    limits: [{kind: evidently}]
alerts:
  slack: {webhook: "${SLACK_WEBHOOK}"}
"""
ENVIRONMENT = {"KAFKA_PASSWORD": "kafka-s3cret", "GATEWAY_TOKEN": "token-s3cret", "TEE_PASSWORD": "tee-s3cret"}


@pytest.fixture
def config(tmp_path, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def write(text=WHOLE):
        path = tmp_path / "driftloop.yaml"
        path.write_text(text)
        return path

    return write


def test_the_configuration_says_it_all_and_other_parts_secrets_need_not_be_there(config, tmp_path):
    assert "SLACK_WEBHOOK" not in os.environ
    options = gateway_options(config(), None)
    assert (options.host, options.port, options.spool, options.spool_bytes) == ("0.0.0.0", 9000, tmp_path / "waiting", 5_000_000)
    assert (options.drain, options.max_body, options.token, options.close_connections) == (60.0, 2000, "token-s3cret", True)
    assert options.log.url == "kafka://broker:9093/events"
    assert options.log.auth.password.get_secret_value() == "kafka-s3cret"
    tee = options.tee
    assert (tee.url, tee.timeout, tee.connections) == ("http://user:tee-s3cret@trusty/consumer", 2.0, 3)
    assert (tee.max_events, tee.max_bytes, tee.ca) == (10, 1000, tmp_path / "ca.pem")
    assert "s3cret" not in repr(options)
    assert "s3cret" not in repr(load_gateway(tmp_path / "driftloop.yaml"))


def test_the_command_line_counts_more_than_the_configuration(config, tmp_path):
    options = gateway_options(config(), None, host="::1", port=0, spool=tmp_path / "other", max_body=7)
    assert (options.host, options.port, options.spool, options.max_body) == ("::1", 0, tmp_path / "other", 7)
    assert options.token == "token-s3cret"


def test_another_log_on_the_command_line_gets_none_of_the_configured_credentials(config):
    options = gateway_options(config(), "kafka://elsewhere:9092/events")
    assert (options.log.url, options.log.auth) == ("kafka://elsewhere:9092/events", None)


def test_without_a_configuration_flags_alone_are_enough(tmp_path):
    assert gateway_options(None, "x.db", host=None, port=None, spool=None, max_body=None) == GatewayOptions(
        gateway_options(None, "x.db").log
    )
    assert (gateway_options(None, "x.db").log.url, gateway_options(None, "x.db").port) == ("x.db", 8090)
    with pytest.raises(SettingsError, match="give --log PATH or URL, or --config FILE"):
        gateway_options(None, None)


def test_a_configuration_that_says_nothing_of_the_gateway_is_enough(config, tmp_path):
    options = gateway_options(config("models: {}\n"), None)
    assert (options.log.url, options.spool) == (f"embedded:{tmp_path}/.driftloop/log.db", tmp_path / ".driftloop" / "spool")
    assert options == GatewayOptions(options.log, spool=options.spool)


def test_every_mistake_is_told_at_once_with_its_line_and_no_secret(config, monkeypatch):
    monkeypatch.delenv("KAFKA_PASSWORD")
    monkeypatch.setenv("GATEWAY_TOKEN", "s3cret")
    path = config(WHOLE.replace("port: 9000", "port: 99000").replace("timeout: 2s", "timeout: soon").replace("drain: 1m", "drains: 1m"))
    with pytest.raises(SettingsError) as caught:
        gateway_options(path, None)
    told = [problem.removeprefix(f"{path}:") for problem in caught.value.problems]
    assert [problem.partition(": ")[0] for problem in told] == ["3", "6", "9", "11", "13"]
    for problem, words in zip(told, ("KAFKA_PASSWORD is not set", "less than", "unknown key", "at least 8", "no duration"), strict=True):
        assert words in problem
    assert "s3cret" not in str(caught.value)


def test_an_unknown_part_is_refused(config):
    with pytest.raises(SettingsError, match="gatevay: unknown key"):
        load_gateway(config("gatevay: {port: 1}\n"))


def test_who_only_watches_needs_none_of_the_gateways_secrets(config, monkeypatch):
    monkeypatch.delenv("GATEWAY_TOKEN")
    monkeypatch.setenv("SLACK_WEBHOOK", "http://slack/")
    path = config()
    assert load_settings(path, gateway=False).log.url == "kafka://broker:9093/events"
    with pytest.raises(SettingsError, match="GATEWAY_TOKEN is not set"):
        load_settings(path)


def started(folder, *arguments, **environment):
    command = [sys.executable, "-m", "streaming.cli", "gateway", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder)


def post(port, target="/", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    ce = {"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "s", "Ce-Type": "org.kubeflow.serving.inference.request"}
    connection.request("POST", target, b"{}", {**ce, "Ce-Namespace": "ns", "Ce-Inferenceservicename": "m", **(headers or {})})
    answer = connection.getresponse()
    try:
        return answer.status, answer.getheader("connection")
    finally:
        connection.close()


def test_the_command_does_what_the_configuration_says_and_says_no_secret(tmp_path):
    port = free_port()
    with Receiver() as receiver:
        (tmp_path / "driftloop.yaml").write_text(
            f"gateway:\n  port: {port}\n  token: ${{GATEWAY_TOKEN}}\n  close_connections: true\n"
            f"  tee: {{url: 'http://user:${{TEE_PASSWORD}}@127.0.0.1:{receiver.port}/'}}\n"
        )
        process = started(tmp_path, "--config", "driftloop.yaml", **ENVIRONMENT)

        def answers():
            try:
                return post(port)[0] == 401
            except OSError:
                return False

        assert poll_until(answers, timeout=30), process.communicate(timeout=5)
        assert post(port, "/token-s3cret") == (200, "close")
        assert receiver.wait_for(1)
        process.send_signal(signal.SIGTERM)
        out, told = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert f"the gateway listens on http://127.0.0.1:{port}" in told
    assert "s3cret" not in told
    assert (tmp_path / ".driftloop" / "log.db").exists()


def test_the_command_line_of_a_gateway_shows_no_secret_and_its_help_names_the_configuration():
    done = subprocess.run([sys.executable, "-m", "streaming.cli", "gateway", "--help"], capture_output=True, text=True, timeout=60)
    assert "--config" in done.stdout
    assert "--token" not in done.stdout, "what stands on a command line can be read by every user of the machine"


def test_a_mistake_in_the_configuration_ends_the_command_with_its_place(tmp_path):
    (tmp_path / "driftloop.yaml").write_text("gateway:\n  port: x\n")
    process = started(tmp_path, "--config", "driftloop.yaml")
    _, told = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "driftloop.yaml:2: gateway.port" in told


def test_the_gateway_starts_with_what_its_extra_installs():
    """Nothing of the other parts' libraries is loaded by the command with a configuration."""
    code = "import json, sys, streaming.gateway_options, inference.gateway_metrics; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded & {"numpy", "pandas", "scipy", "sklearn", "river", "kafka", "azure", "httpx", "evidently", "kserve"} == set()
