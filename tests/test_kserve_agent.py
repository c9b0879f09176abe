"""KServe's own agent as the sender: what it posts is what was recorded, and ends in a verdict over a real Kafka."""

import base64
import gzip
import http.client
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import joblib
import orjson
import pyarrow
import pyarrow.parquet
import pytest
from kserve_pod import FEATURES, FORMS, MISTAKES, Client, agent
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from watchers import make_topic

from inference.event import LABEL, REQUEST, RESPONSE
from inference.versions import Feature, Repository, Schema, Version
from streaming.demo.processes import Processes, answers
from streaming.demo.traffic import Rows
from streaming.testing import Answer, Receiver, free_port, poll_until

RECORDING = Path(__file__).parent / "recordings" / "kserve-logger-all.jsonl.gz"
MODEL, NAME = "default/iris-sklearn", "iris-sklearn"
ANNOTATION = '{"driftloop.io/model-version":"1"}'
SETTINGS = """\
log: {log}
repository: models
state: state
reports: false
models:
  {model}:
    window: {{size: 100, slide: 20}}
    limits:
      - {{kind: evidently, test: ks, threshold: 1e-6}}
    governor: {{confirm: 2, of: 3, min_samples: 100}}
    retraining: null
alerts:
  webhook: {{url: "{webhook}"}}
"""


def write_version(repository, folder, rows):
    """A version with a model of the true data set and a reference sample of `rows`."""
    model = LogisticRegression(max_iter=1000).fit(*load_iris(return_X_y=True))
    columns = dict(zip(FEATURES, zip(*rows, strict=True), strict=True))
    pyarrow.parquet.write_table(
        pyarrow.table({**columns, "prediction": [int(kind) for kind in model.predict(rows)]}), folder / "reference.parquet"
    )
    joblib.dump(model, folder / "model.joblib")
    schema = Schema(tuple(Feature(name, "numeric") for name in FEATURES), "categorical", "species")
    version = repository.next_version(MODEL)
    repository.write(
        Version(MODEL, version, folder, schema), model_file=folder / "model.joblib", reference_file=folder / "reference.parquet"
    )
    repository.promote(MODEL, version, expected=repository.current(MODEL))


class Topic:
    """What stands on a topic, read with nothing of ours: CloudEvents' Kafka binding as others see it."""

    def __init__(self, bootstrap, name):
        from kafka import KafkaConsumer, TopicPartition

        self._consumer = KafkaConsumer(bootstrap_servers=bootstrap)
        self._places = [TopicPartition(name, number) for number in self._consumer.partitions_for_topic(name)]
        self._consumer.assign(self._places)
        self._consumer.seek_to_beginning()
        self._messages = []

    def messages(self):
        """All so far: (key, headers, value)."""
        ends = self._consumer.end_offsets(self._places)
        while any(self._consumer.position(place) < ends[place] for place in self._places):
            for polled in self._consumer.poll(timeout_ms=200).values():
                self._messages += [(m.key.decode(), {name: raw.decode() for name, raw in m.headers}, m.value) for m in polled]
        return self._messages

    def halves(self):
        """How often each half of a prediction stands there, by (X-Request-Id, type)."""
        found = [headers for _, headers, _ in self.messages() if headers["ce_type"] in (REQUEST, RESPONSE)]
        return Counter((json.loads(headers["ce_metadata"])["X-Request-Id"][0], headers["ce_type"]) for headers in found)

    def labels(self):
        """The labels by id: the event's key and body."""
        return {h["ce_id"]: (key, json.loads(value)) for key, h, value in self.messages() if h["ce_type"] == LABEL}

    def close(self):
        self._consumer.close()


class Gateway:
    """`driftloop gateway` in front of Kafka, a sender of labels, and a way to kill it."""

    def __init__(self, folder, log):
        self.port = free_port()
        self._folder = folder
        self._command = ["gateway", "--log", log, "--spool", str(folder / "spool"), "--port", str(self.port)]
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        with (self._folder / "gateway.log").open("ab") as output:
            self.process = subprocess.Popen([sys.executable, "-m", "streaming.cli", *self._command], stdout=output, stderr=output)
        up = poll_until(lambda: answers(f"{self.url}/healthz") or self.process.poll() is not None, timeout=30)
        assert up and self.process.poll() is None, (self._folder / "gateway.log").read_text(encoding="utf-8")

    def kill_and_start(self):
        self.process.kill()
        self.process.wait()
        self.start()

    def counts(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", "/counts")
        return json.loads(connection.getresponse().read())

    def label(self, id_, prediction_id, label):
        """Whether the label was acknowledged."""
        namespace, _, name = MODEL.partition("/")
        ours = {"specversion": "1.0", "id": id_, "type": LABEL, "source": "test", "namespace": namespace, "inferenceservicename": name}
        headers = {f"ce-{key}": value for key, value in ours.items()} | {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("POST", "/", json.dumps({"prediction_id": prediction_id, "labels": [label]}), headers)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Watcher:
    """What `driftloop watch` leaves for people to see in its state folder."""

    def __init__(self, state):
        self._state = state

    def status(self):
        path = self._state / "status.json"
        return orjson.loads(path.read_bytes())["models"][MODEL] if path.exists() else {"counts": {}}

    def count(self, name):
        return self.status()["counts"].get(name, 0)

    def outcomes(self, kind):
        path = self._state / "outcomes.jsonl"
        lines = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
        return [outcome for outcome in map(orjson.loads, lines) if outcome["outcome"] == kind]

    def alerts(self):
        return [decision for decision in self.outcomes("decision") if decision["action"] != "hold"]


class Loop:
    """client -> agent -> predictor; agent -> gateway -> Kafka -> watcher -> webhook: each of them a process, and none a stand-in."""

    def __init__(self, stack, folder, bootstrap, binary):
        self._stack = stack
        self._folder = folder
        self.hook = stack.enter_context(Receiver())
        topic = make_topic(bootstrap)
        log = f"kafka://{bootstrap}/{topic}"
        self._write_models()
        (folder / "driftloop.yaml").write_text(SETTINGS.format(log=log, model=MODEL, webhook=self.hook.url("/drift")))
        self.topic = Topic(bootstrap, topic)
        stack.callback(self.topic.close)
        self.processes = stack.enter_context(Processes(folder / "logs"))
        port = free_port()
        serving = ["serve", "--repository", str(folder / "served"), "--model", MODEL, "--port", str(port)]
        self.processes.start("serve", serving)
        self.processes.start("watch", ["watch", "--config", str(folder / "driftloop.yaml")])
        self.gateway = Gateway(folder, log)
        stack.callback(lambda: (self.gateway.process.kill(), self.gateway.process.wait()))
        self.watcher = Watcher(folder / "state")
        self.processes.wait_for("the predictor's first answer", lambda: answers(f"http://127.0.0.1:{port}/v2/health/ready"), 60)
        self.agent = stack.enter_context(
            agent(
                binary,
                folder,
                model_port=port,
                log_url=f"{self.gateway.url}/",
                service=MODEL,
                annotations="driftloop.io/model-version=1",
            )
        )
        self.client = Client(self.agent.port, NAME)
        self._rows = Rows(7)

    def _write_models(self):
        """The predictor serves version 1. In the repository version 2, with a reference far off, is the live one already:
        which of them a prediction belongs to can only be known from its annotation."""
        rows, moved = Rows(1), Rows(2)
        repository = Repository(self._folder / "models")
        write_version(repository, self._folder, [rows.draw(drifted=False)[0] for _ in range(400)])
        shutil.copytree(self._folder / "models", self._folder / "served")
        write_version(repository, self._folder, [moved.draw(drifted=True)[0] for _ in range(400)])

    def rows(self, count, *, drifted=False):
        return [self._rows.draw(drifted=drifted)[0] for _ in range(count)]

    def settled(self):
        """Whether the agent has posted all that the client caused, and has heard what became of it."""
        begun, acknowledged, failed = self.agent.posts()
        return begun == self.client.posted == acknowledged + failed

    def wait(self, what, ready, timeout=30):
        self.processes.wait_for(what, ready, timeout)


@pytest.mark.slow
def test_what_kserves_agent_posts_is_counted_exactly_survives_a_kill_of_the_gateway_and_ends_in_a_verdict(kafka, kserve_agent, tmp_path):
    with ExitStack() as stack:
        loop = Loop(stack, tmp_path, kafka, kserve_agent)
        quiet_traffic_is_counted_exactly(loop)
        what_was_acknowledged_outlives_the_gateway(loop)
        a_label_is_read_back(loop)
        drifted_traffic_ends_in_a_verdict(loop)
        loop.processes.check()


def quiet_traffic_is_counted_exactly(loop):
    client = loop.client
    forms = itertools.cycle(FORMS)
    for turn in range(120):
        client.predict(loop.rows(1 + turn % 3), next(forms))
        if turn % 10 == 0:
            client.mistake(*MISTAKES[turn // 10 % 3])
            client.look(("/v1/models", "/metrics", f"/v2/models/{NAME}")[turn // 10 % 3])
    loop.wait("the agent's posts", loop.settled)
    assert loop.agent.posts() == (client.posted, client.posted, 0)
    counts = loop.gateway.counts()
    assert counts["received"] == client.posted
    assert counts["appended"] == 2 * len(client.answered) + len(client.refused)
    assert counts["ignored"] == {"empty_request": client.read, "not_inference": client.read}
    assert counts["rejected"] == counts["refused"] == {}
    loop.wait("the watcher's counts", lambda: loop.watcher.count("predictions") == client.rows)
    assert (loop.watcher.count("paired"), loop.watcher.count("waiting_requests")) == (len(client.answered), len(client.refused))
    halves = {(f"r{number}", kind) for number in client.answered for kind in (REQUEST, RESPONSE)}
    assert loop.topic.halves() == Counter(halves | {(f"r{number}", REQUEST) for number in client.refused})
    assert {(key, headers["ce_annotations"]) for key, headers, _ in loop.topic.messages()} == {(MODEL, ANNOTATION)}
    verdicts = loop.watcher.outcomes("verdict")
    assert len(verdicts) == 1 + (client.rows - 100) // 20
    assert {(verdict["version"], verdict["drift"]) for verdict in verdicts} == {("1", False)}


def what_was_acknowledged_outlives_the_gateway(loop):
    """The agent does not say which of its posts were acknowledged, only how many: what is missing is at most what failed.
    Of the labels, which the test sends itself, it is known which."""
    client = loop.client
    already, known, (_, _, failed_before) = len(client.answered), client.rows, loop.agent.posts()
    labelled, unlabelled = set(), set()

    def traffic():
        client.predict(loop.rows(1))
        id_ = f"label-{len(client.answered)}"
        (labelled if loop.gateway.label(id_, f"c{client.answered[-1]}", 0) else unlabelled).add(id_)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(40):
            traffic()
        killed = pool.submit(loop.gateway.kill_and_start)
        while not killed.done():
            traffic()
        killed.result()
        for _ in range(40):
            traffic()
    loop.wait("the agent's posts", loop.settled)
    failed = loop.agent.posts()[2] - failed_before
    assert failed > 0, "the gateway was away, and KServe never tries again"
    assert unlabelled
    assert len(labelled) >= 80
    loop.wait("the acknowledged labels on Kafka", lambda: labelled <= loop.topic.labels().keys())
    sent = {(f"r{number}", kind) for number in client.answered[already:] for kind in (REQUEST, RESPONSE)}
    loop.wait("all but what failed on Kafka", lambda: len(sent) - len(sent & loop.topic.halves().keys()) <= failed)
    pairs = Counter(request for request, _ in sent & loop.topic.halves().keys())
    whole = sum(count == 2 for count in pairs.values())
    assert 60 <= whole < len(sent) // 2
    loop.wait("the watcher's counts", lambda: loop.watcher.count("predictions") == known + whole)


def a_label_is_read_back(loop):
    before = loop.watcher.count("labels")
    assert loop.gateway.label("label-of-the-end", f"c{loop.client.answered[-1]}", 2)
    loop.wait("the label on Kafka", lambda: "label-of-the-end" in loop.topic.labels())
    told = {"prediction_id": f"c{loop.client.answered[-1]}", "labels": [2]}
    assert loop.topic.labels()["label-of-the-end"] == (MODEL, told)
    loop.wait("the watcher's count of labels", lambda: loop.watcher.count("labels") == before + 1)


def drifted_traffic_ends_in_a_verdict(loop):
    client, watcher = loop.client, loop.watcher
    assert watcher.alerts() == []
    seen, known = watcher.count("predictions"), client.rows
    for form in itertools.cycle(FORMS):
        client.predict(loop.rows(2, drifted=True), form)
        if client.rows - known >= 60 and (watcher.alerts() or client.rows - known >= 400):
            break
    loop.wait("the agent's posts", loop.settled)
    loop.wait("the watcher's counts", lambda: watcher.count("predictions") == seen + client.rows - known)
    [decision] = watcher.alerts()
    verdict = decision["verdict"]
    assert (decision["action"], verdict["version"], verdict["drift"]) == ("alert", "1", True)
    assert seen < verdict["predictions"] <= seen + 120
    assert {"sepal_length", "petal_length"} <= {finding["feature"] for finding in verdict["findings"] if finding["over"]}
    assert loop.hook.wait_for(1, timeout=20)
    [told] = loop.hook.requests
    assert (told.path, told.headers["ce-type"], told.headers["ce-id"]) == ("/drift", "io.driftloop.drift.detected", decision["id"])
    assert told.json()["verdict"] == verdict
    assert watcher.status()["version"] == "1"


# The recording


def recorded():
    """What was recorded, request by request: the headers and body of its request event, and of its response event or None."""
    halves = defaultdict(list)
    with gzip.open(RECORDING, "rt", encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            headers = dict(line["headers"])
            halves[headers["Ce-Type"], headers["Ce-Id"]].append((headers, base64.b64decode(line["body_base64"])))
    for (kind, id_), requests in halves.items():
        if kind == REQUEST:
            yield from itertools.zip_longest(requests, halves.get((RESPONSE, id_), []))


def shape(name, value):
    """A header's value without what differs from event to event; texts stay."""
    if name in ("host", "ce-time", "ce-recordedtime"):
        return re.sub(r"\d+", "9", value)
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "(uuid)", value) if name == "ce-id" else value


def test_the_recording_is_still_what_kserves_agent_sends(kserve_agent, tmp_path):
    """Each recorded request is sent again, to a model server that answers as recorded: the agent posts the same headers in
    the same order, with the same values but for ids, times and ports, and the same bodies."""
    exchanges = list(recorded())
    assert len(exchanges) > 100
    replies = [Answer(200, body=response[1]) if response else Answer(400) for _, response in exchanges]
    first = exchanges[0][0][0]
    [(annotation, version)] = json.loads(first["Ce-Annotations"]).items()
    metadata = {name for (headers, _), _ in exchanges for name in json.loads(headers["Ce-Metadata"])}
    with (
        Receiver(replies) as model,
        Receiver() as sink,
        agent(
            kserve_agent,
            tmp_path,
            model_port=model.port,
            log_url=sink.url(),
            service=f"{first['Ce-Namespace']}/{first['Ce-Inferenceservicename']}",
            annotations=f"{annotation}={version}",
            headers=sorted(metadata),
            pod=first["Ce-Source"],
        ) as sender,
    ):
        seen = 0
        for (headers, body), response in exchanges:
            send_again(sender.port, headers, body)
            assert sink.wait_for(seen + (2 if response else 1))
            posts = {post.headers["ce-type"]: post for post in sink.requests[seen:]}
            seen += len(posts)
            for old, content in filter(None, ((headers, body), response)):
                new = posts.pop(old["Ce-Type"])
                assert list(new.headers) == [name.lower() for name in old]
                assert [shape(*item) for item in new.headers.items()] == [shape(name.lower(), value) for name, value in old.items()]
                assert (new.method, new.path, new.body) == ("POST", "/", content)
            assert not posts


def send_again(port, headers, body):
    """The request that a client must have made for this event."""
    given = {name: values[0] for name, values in json.loads(headers["Ce-Metadata"]).items()}
    if "Content-Type" in headers:
        given["Content-Type"] = headers["Content-Type"]
    if shape("ce-id", headers["Ce-Id"]) != "(uuid)":
        given["Ce-Id"] = headers["Ce-Id"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST" if body else "GET", "/v1/models/iris:predict" if body else "/v1/models", body or None, given)
    connection.getresponse().read()
    connection.close()


# The script that builds it

STAND_IN = """#!/bin/sh
echo "$1" >>"{folder}/calls"
case $1 in
version) echo "go version {version} linux/amd64" ;;
mod) echo '{{"Dir": "{folder}", "Sum": "{digest}"}}' ;;
build) sleep 0.7; while [ "$1" != -o ]; do shift; done; echo built >"$2" ;;
esac
"""


@pytest.fixture
def stand_in(tmp_path):
    """Writes a `go` that notes its calls, and gives the environment in which it is the one that is found."""

    def write(version="go1.25.8", digest="h1:Bs7HxmGV4KFqqptDcWseKv+mwD4YOYHJWcuVgPG2Gug="):
        (tmp_path / "go").write_text(STAND_IN.format(folder=tmp_path, version=version, digest=digest), encoding="utf-8")
        (tmp_path / "go").chmod(0o755)
        return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DRIFTLOOP_CACHE": str(tmp_path / "cache")}

    return write


def test_without_go_the_message_names_what_is_missing(kserve_script, tmp_path):
    done = kserve_script("fetch", PATH=str(tmp_path), DRIFTLOOP_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "agent.py: no go on the PATH: KServe v0.20.0 is built with Go 1.25.8 or newer\n"


def test_a_go_that_is_too_old_is_told_from_none(kserve_script, stand_in):
    done = kserve_script("fetch", **stand_in(version="go1.19.8"))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.endswith("is Go 1.19: KServe v0.20.0 is built with Go 1.25.8 or newer\n")


def test_a_module_with_another_digest_is_not_built(kserve_script, stand_in, tmp_path):
    done = kserve_script("fetch", **stand_in(digest="h1:other="))
    assert (done.returncode, done.stdout) == (3, "")
    assert "its digest is h1:other=, not h1:" in done.stderr
    assert (tmp_path / "calls").read_text(encoding="utf-8").split() == ["version", "mod"]


def test_of_two_that_start_at_once_one_builds_and_later_ones_need_no_go(kserve_script, stand_in, tmp_path):
    environment = stand_in()
    done = []
    threads = [threading.Thread(target=lambda: done.append(kserve_script("fetch", **environment))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.append(kserve_script("fetch", **{**environment, "PATH": "/nowhere"}))
    assert [result.returncode for result in done] == [0, 0, 0], done
    [path] = {result.stdout for result in done}
    assert Path(path.rstrip("\n")).read_text(encoding="utf-8") == "built\n"
    assert (tmp_path / "calls").read_text(encoding="utf-8").split().count("build") == 1
