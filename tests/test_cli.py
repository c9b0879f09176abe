"""The command: light to start, clear when something is wrong, and its commands do what they say."""

import json
import socket
import subprocess
import sys
import time

import pytest

from inference.errors import LogUnavailable
from inference.event import Event
from inference.log import open_log
from streaming.cli import main
from streaming.connect_check import connect
from streaming.settings import load_settings

KEY = "s3cretKey="
STRING = f"Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=all;SharedAccessKey={KEY}"


def driftloop(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "streaming.cli", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_init_writes_a_file_that_check_accepts_and_never_overwrites_one(tmp_path, capsys):
    path = tmp_path / "driftloop.yaml"
    assert main(["init", "--config", str(path)]) == 0
    assert main(["check", "--config", str(path)]) == 0
    assert "default/iris-sklearn" in capsys.readouterr().out
    path.write_text("mine: 1\n")
    assert main(["init", "--config", str(path)]) == 2
    assert path.read_text() == "mine: 1\n"
    assert main(["check", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"driftloop: {path} is already there; --force overwrites it" in error
    assert f"driftloop: {path}:1: mine: unknown key" in error
    assert main(["init", "--config", str(path), "--force"]) == 0


def test_compile_writes_the_pipeline_where_it_is_told(tmp_path, capsys):
    assert main(["pipeline", "compile", "--output", str(tmp_path / "deep" / "pipeline.yaml")]) == 0
    from pipelines.retraining import COMPILED

    assert (tmp_path / "deep" / "pipeline.yaml").read_bytes() == COMPILED.read_bytes()


@pytest.mark.parametrize(
    ("parameter", "says"),
    [("margin", "NAME=VALUE"), ("nope=1", "nope"), ("min_rows=many", "min_rows")],
)
def test_a_wrong_pipeline_parameter_is_named(tmp_path, capsys, parameter, says):
    assert main(["pipeline", "run", "--folder", str(tmp_path), "--param", "model=default/iris", "--param", parameter]) == 2
    assert says in capsys.readouterr().err


def test_replay_of_nothing_is_an_empty_sum_and_a_wrong_log_is_an_error(tmp_path, capsys):
    main(["init", "--config", str(tmp_path / "driftloop.yaml")])
    (tmp_path / "text.db").write_text("no database at all, but long enough to be looked at" * 20)
    capsys.readouterr()
    assert main(["replay", "--config", str(tmp_path / "driftloop.yaml"), "--from-log", str(tmp_path / "text.db")]) == 2
    assert "text.db" in capsys.readouterr().err
    assert main(["replay", "--config", str(tmp_path / "driftloop.yaml"), "--from-log", str(tmp_path / "no.db"), "--json"]) == 2
    assert "no.db" in capsys.readouterr().err
    assert not (tmp_path / "no.db").exists()


def test_help_is_quick_and_a_mistyped_command_says_what_there_is(tmp_path):
    helped = driftloop("--help", cwd=tmp_path)
    assert helped.returncode == 0
    for command in ("demo", "serve", "gateway", "watch", "replay", "pipeline", "init", "check"):
        assert command in helped.stdout
    wrong = driftloop("wach", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "watch" in wrong.stderr


def test_serve_without_a_model_says_how_to_make_one(tmp_path):
    done = driftloop("serve", "--repository", tmp_path, "--model", "default/iris", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "default/iris" in done.stderr


def test_a_service_logs_json_where_there_is_no_terminal(tmp_path):
    (tmp_path / "taken").write_text("")
    done = driftloop("-v", "gateway", "--log", tmp_path / "taken" / "log.db", "--port", "0", cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("driftloop: ")]
    assert all(json.loads(line)["level"] for line in lines)
    assert "taken" in done.stderr


# check --connect


def configured(tmp_path, log, **environment):
    """A configuration with that log, as the template has it otherwise."""
    main(["init", "--config", str(tmp_path / "driftloop.yaml")])
    text = (tmp_path / "driftloop.yaml").read_text()
    (tmp_path / "driftloop.yaml").write_text(text.replace("log: .driftloop/log.db ", f"log: {log} ", 1))
    return ["check", "--connect", "--config", str(tmp_path / "driftloop.yaml")]


@pytest.fixture
def hub(authority, monkeypatch):
    """Event Hubs' double, and how a configuration names it."""
    pytest.importorskip("kafka", reason="kafka-python is not installed (extra `kafka`)")
    from eventhubs_double import EventHubsDouble

    monkeypatch.setenv("EVENTHUBS", STRING)
    with EventHubsDouble(2, users={"$ConnectionString": STRING}, tls=authority.server("127.0.0.1")) as double:
        auth = '{kind: connection_string, connection_string: "${EVENTHUBS}"}'
        double.configured = f"{{url: 'kafka://{double.address}/driftloop', auth: {auth}, tls: {{ca: {authority.ca}}}}}"
        yield double


@pytest.mark.parametrize("client", ["kafka-python", "librdkafka"])
def test_check_reaches_the_log_and_tells_what_stands_on_it(tmp_path, capsys, hub, client):
    if client == "librdkafka":
        pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed (extra `librdkafka`)")
    assert main(configured(tmp_path, hub.configured.replace("{url", f"{{client: {client}, url"))) == 0
    out = capsys.readouterr().out
    assert f"kafka://{hub.address}/driftloop: reached by {client}, with TLS, as connection_string" in out
    assert "partition 0: offsets 0 to 0" in out
    assert "partition 1: offsets 0 to 0" in out
    assert "default/iris-sklearn on partition" in out
    assert "reading works" in out
    if client == "kafka-python":
        assert "the broker does not tell whether it is permitted; nothing was written" in out
        assert "group driftloop: may be asked; committed offsets 0: none, 1: none" in out
    assert hub.seen["Produce"] == hub.seen["OffsetCommit"] == hub.seen["JoinGroup"] == 0
    assert KEY not in out


def test_check_says_what_is_in_the_way_with_exit_code_2_and_without_the_secret(tmp_path, capsys, hub):
    hub.users.clear()
    hub.users["$ConnectionString"] = "another"
    began = time.monotonic()
    assert main(configured(tmp_path, hub.configured)) == 2
    assert time.monotonic() - began < 15
    told = capsys.readouterr()
    assert "driftloop: kafka://" in told.err
    assert "the broker refused the credentials: check `log.auth`" in told.err
    assert KEY not in told.out + told.err
    hub.users["$ConnectionString"] = STRING
    hub.denied = {"driftloop"}
    assert main(configured(tmp_path, hub.configured)) == 2
    assert "give this user the rights to read and write the topic 'driftloop'" in capsys.readouterr().err


def test_check_tells_of_an_embedded_log_and_of_one_that_is_not_there(tmp_path, capsys):
    command = configured(tmp_path, "log.db")
    assert main(command) == 2
    assert f"there is no event log at {tmp_path / 'log.db'}" in capsys.readouterr().err
    log = open_log(str(tmp_path / "log.db"))
    log.append([Event("e1", "pod", "t", extensions={"namespace": "ns", "inferenceservicename": "m"})])
    log.close()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert f"embedded:{tmp_path / 'log.db'}: reached\n" in out
    assert "reading works: 1 of the newest events were read" in out


def test_check_waits_for_nobody_longer_than_it_says(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        configured(tmp_path, f"kafka://127.0.0.1:{mute.getsockname()[1]}/driftloop")
        settings = load_settings(tmp_path / "driftloop.yaml")
        began = time.monotonic()
        with pytest.raises(LogUnavailable, match="no answer within 1 s; is this its address, does the name resolve here"):
            list(connect(settings, limit=1.0))
        assert time.monotonic() - began < 5


def test_a_client_that_is_not_installed_is_named_with_its_extra(tmp_path, capsys, monkeypatch):
    for package, log in (("confluent_kafka", "{url: 'kafka://a', client: librdkafka}"), ("kafka", "'kafka://a'")):
        for name in [name for name in sys.modules if name.startswith(("inference.log.librdkafka", "inference.log.kafka"))]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        assert main(configured(tmp_path / package if (tmp_path / package).mkdir() is None else tmp_path, log)) == 2
        extra = "librdkafka" if package == "confluent_kafka" else "kafka"
        assert f"this command needs {package}; pip install 'driftloop[{extra}]'" in capsys.readouterr().err


def test_what_the_template_shows_of_a_log_on_the_network_is_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENTHUBS", STRING)
    monkeypatch.setenv("KAFKA_PASSWORD", KEY)
    main(["init", "--config", str(tmp_path / "driftloop.yaml")])
    text = (tmp_path / "driftloop.yaml").read_text()
    shown = text.partition("#log:\n")[2].partition("# `driftloop check")[0].replace("#  ", "  ")
    url, *rest = [line for line in shown.splitlines() if ":" in line and "eventhubs://" not in line]
    seen = []
    for line in rest:
        (tmp_path / "driftloop.yaml").write_text(f"log:\n{url}\n{line}\n{text.partition('# `driftloop check')[2].partition(chr(10))[2]}")
        log = load_settings(tmp_path / "driftloop.yaml").log
        seen += [name for name in ("auth", "tls", "client", "api_version") if f"  {name}:" in line]
        assert log.model_dump(exclude_defaults=True).keys() >= {"url", seen[-1]}
    assert seen == ["auth", "auth", "auth", "tls", "client", "api_version"]
