"""Watchers as processes of their own, and the outside world they act upon: a topic, a KFP double, a Slack double, both counting."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
from sklearn.dummy import DummyClassifier

from inference.errors import ActionError
from inference.log import open_log
from inference.versions import Feature, Repository, Schema, Version
from pipelines.submit import RunRequest, RunState
from streaming.core.verdict import as_object
from streaming.replay import Replay
from streaming.testing import Answer, Receiver, finished, prediction, promotion

SCRIPT = Path(__file__).with_name("watcher_process.py")
WITHIN = 1.0
"""Seconds between an action and its event on the log: a kill in between may repeat the action."""


def write_version(folder, model, version, centre=0.0):
    rng = np.random.default_rng(0)
    table = pyarrow.table({"x": rng.normal(centre, 1.0, 400), "prediction": rng.integers(0, 2, 400).astype(float)})
    pyarrow.parquet.write_table(table, folder / "reference.parquet")
    joblib.dump(DummyClassifier().fit([[0.0]], [0]), folder / "model.joblib")
    schema = Schema((Feature("x", "numeric"),), "numeric", "y")
    Repository(folder / "models").write(
        Version(model, version, Path(), schema), model_file=folder / "model.joblib", reference_file=folder / "reference.parquet"
    )


def make_topic(bootstrap, partitions=4):
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic

    name = f"t-{uuid.uuid4().hex[:12]}"
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(name, num_partitions=partitions, replication_factor=1)])
    admin.close()
    return name


class Answering(Receiver):
    """A receiver whose answers are made of the requests."""

    answer = None

    def _record(self, request):
        return self.answer(request)


class Kubeflow:
    """What a watcher knows of Kubeflow: look a run up, create it. Creating one that is there is counted, and makes a second one.

    A run goes on for `seconds`, then `ended` is called with (model, run id), and it has succeeded.
    """

    def __init__(self, ended, seconds=0.7):
        self.created = Counter()
        self.models = {}
        self._lock = threading.Lock()
        self._ended = ended
        self._seconds = seconds
        self._over = set()
        self.server = Answering()
        self.server.answer = self._answer

    def _answer(self, request):
        run_id = request.path.rpartition("/")[2]
        with self._lock:
            if request.method == "POST":
                self.created[run_id] += 1
                self.models[run_id] = request.json()["model"]
                threading.Timer(self._seconds, self._end, (run_id,)).start()
            if run_id not in self.created:
                return Answer(404, body=b"{}")
            state = "succeeded" if run_id in self._over else "running"
        return Answer(body=orjson.dumps({"state": state}))

    def _end(self, run_id):
        self._ended(self.models[run_id], run_id)
        with self._lock:
            self._over.add(run_id)


class KubeflowRunner:
    """The `Runner` that asks it: look up, then create."""

    def __init__(self, port):
        self._port = port

    def _call(self, method, run_id, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request(method, f"/runs/{run_id}", body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except OSError as error:
            raise ActionError(f"Kubeflow is away: {error}") from error
        finally:
            connection.close()

    def start(self, request: RunRequest) -> None:
        if self.state(request.run_id).state == "unknown":
            self._call("POST", request.run_id, orjson.dumps({"model": request.model}))

    def state(self, run_id: str) -> RunState:
        status, body = self._call("GET", run_id)
        return RunState("unknown") if status == 404 else RunState(orjson.loads(body)["state"])

    def stop(self, run_id: str) -> None:
        return


class Loop:
    """A topic with traffic that drifts over and over, and watchers over it, each a process with a state folder of its own."""

    def __init__(self, folder, log, *, models=4, client="kafka-python", session="6s", every="300ms", static=True):
        self.folder = folder
        self.url = log
        self.kills = []
        self.slack_arrivals = {}
        self.repeated = []
        self._slack_lock = threading.Lock()
        self._log = open_log(log)
        # One model on each partition, and then around.
        names = {self._log.partition_of(f"ns/m{number}"): f"ns/m{number}" for number in range(200)}
        self.models = [name for _, name in sorted(names.items())][:models]
        self._appending = threading.Lock()
        self.kubeflow = Kubeflow(lambda model, run_id: self.append([finished(model, run_id)]))
        self.slack = Receiver(on_request=self._heard)
        for model in self.models:
            write_version(folder, model, "1")
        self._client, self._session, self._every, self._static = client, session, every, static
        self._traffic = threading.Thread(target=self._send)
        self._stop = threading.Event()
        self.sent = 0
        self.processes = {}

    def settings(self, name):
        path = self.folder / f"{name}.yaml"
        models = "".join(
            f"  {model}:\n"
            "    window: {size: 40, slide: 10}\n"
            "    limits:\n"
            "      - {kind: evidently, test: ks, threshold: 1e-6}\n"
            "      - {kind: detector, detector: {kind: adwin}}\n"
            "      - {kind: budget, false_alarms: 1 per 20k events}\n"
            "    governor: {confirm: 1, of: 2, cooldown: 1s}\n"
            for model in self.models
        )
        client = f", client: {self._client}" if self.url.startswith("kafka:") else ""
        path.write_text(
            f"log: {{url: '{self.url}'{client}}}\nrepository: models\nstate: state-{name}\nreports: false\nmodels:\n{models}"
            f"alerts:\n  slack: {{webhook: '{self.slack.url('/hook')}'}}\n"
            f"watch: {{group: g-{self.folder.name},{f' member: {name},' if self._static else ''} snapshots: '{self.folder / 'snapshots'}',"
            f" snapshot_every: {self._every}, session: {self._session}}}\n"
        )
        return path

    def _heard(self, request):
        now = time.monotonic()
        with self._slack_lock:
            first = self.slack_arrivals.setdefault(request.body, now)
            if first != now:
                self.repeated.append((first, now, request.body))

    def append(self, events):
        with self._appending:
            self._log.append(events)

    def begin(self):
        self.append([promotion(model, "1") for model in self.models])
        self._traffic.start()

    def _send(self):
        """About 160 predictions a second: quiet for 200 of each model, then drifted for 120, and again."""
        rng, number = np.random.default_rng(3), 0
        while not self._stop.is_set():
            began = time.monotonic()
            events = []
            for _ in range(4):
                number += 1
                centre = 8.0 if number % 320 >= 200 else 0.0
                for model in self.models:
                    events += prediction(model, f"{model}-{number}", [[float(rng.normal(centre, 1.0))]], [number % 2])
                    if rng.random() < 0.02:
                        events.append(events[-1])
            self.append(events)
            self.sent += len(events)
            self._stop.wait(max(0.0, 0.1 - (time.monotonic() - began)))

    def start(self, name="a"):
        with (self.folder / f"{name}.log").open("ab") as output:
            command = [sys.executable, str(SCRIPT), str(self.settings(name)), str(self.kubeflow.server.port)]
            # The script's folder, for what it shares with the tests; not the checkout: the installed packages are tested.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])}
            self.processes[name] = subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    def kill(self, name="a"):
        self.kills.append(time.monotonic())
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def stop(self, name="a"):
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, self.log_of(name)

    def log_of(self, name):
        return (self.folder / f"{name}.log").read_text()[-6000:]

    def alive(self):
        return {name: process.poll() is None for name, process in self.processes.items()}

    def status(self, name="a"):
        try:
            return orjson.loads((self.folder / f"state-{name}" / "status.json").read_bytes())
        except (OSError, ValueError):
            return {}

    def end_traffic(self):
        self._stop.set()
        self._traffic.join()

    def caught_up(self):
        """Whether the living watchers together stand at the end of every partition, and nothing is left to do."""
        reached, pending = {}, 0
        for name in self.processes:
            status = self.status(name)
            reached |= status.get("positions", {})
            pending += sum(kind.get("pending", 0) for kind in status.get("actions", {}).values())
        ends = self._log.end_positions()
        return not pending and all(reached.get(str(number)) == end for number, end in ends.items() if end)

    def said(self):
        """What all watchers said, each id once, by partition in the log's order, in which replicas may disagree about nothing."""
        by_id = {}
        for path in sorted(self.folder.glob("state-*/outcomes.jsonl")):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    outcome = orjson.loads(line)
                    assert by_id.setdefault(outcome["id"], outcome) == outcome
        return by_id

    def undisturbed(self, settings_path):
        from streaming.assemble import build_fleet
        from streaming.settings import load_settings

        replay = Replay(open_log(self.url), build_fleet(load_settings(settings_path)))
        return {outcome["id"]: outcome for outcome in (orjson.loads(orjson.dumps(as_object(one))) for one in replay)}

    def close(self):
        self.end_traffic() if self._traffic.is_alive() else None
        for process in self.processes.values():
            process.kill()
            process.wait()
        self.slack.close()
        self.kubeflow.server.close()
        self._log.close()

    def check(self):
        """The whole promise. Gives what was repeated on Slack by a kill within a moment of the first message."""
        expected = self.undisturbed(self.settings("undisturbed"))
        said = self.said()
        assert {id_: said.get(id_) for id_ in expected} == expected
        assert said.keys() == expected.keys()
        decisions = [one for one in expected.values() if one["outcome"] == "decision"]
        runs = [one["run_id"] for one in decisions if one["run_id"]]
        assert dict(self.kubeflow.created) == dict.fromkeys(runs, 1)
        ends = [one for one in expected.values() if one["outcome"] == "notice" and one["kind"] == "retraining_finished"]
        assert len(self.slack_arrivals) == len(runs) + len(ends)
        for first, _, body in self.repeated:
            assert any(0 <= kill - first <= WITHIN for kill in self.kills), (sorted(kill - first for kill in self.kills), body)
        return len(runs), len(expected)
