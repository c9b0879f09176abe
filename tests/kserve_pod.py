"""A predictor's pod as processes of this machine: KServe's own agent in front of a model server, and a client who asks it."""

import contextlib
import fcntl
import gzip
import http.client
import json
import os
import socket
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from streaming.testing import free_port, poll_until

# By default the agent leaves out most of what it says more than a hundred times a second; posts are counted by what it says.
LOGGING = '{"sampling": null}'


class Agent:
    """The agent as it runs in front of `model_port`; what it says of its posts is counted in its own log."""

    def __init__(self, process, port, log):
        self.process = process
        self.port = port
        self._log = log

    def posts(self):
        """(begun, acknowledged with 200, failed): with equal sums nothing is on its way."""
        said = [json.loads(line)["message"] for line in self._log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
        begun = sum(message.startswith("Received work request") for message in said)
        acknowledged = sum(message.startswith("Sent with status code 200,") for message in said)
        ended = sum(message.startswith(("Sent with status code", "Send did not return", "Failed to send")) for message in said)
        return begun, acknowledged, ended - acknowledged


@contextlib.contextmanager
def agent(binary, folder, *, model_port, log_url, service, annotations, headers=("X-Request-Id",), pod="iris-predictor-0"):
    """KServe's agent with the arguments that its controller writes into the pod; yields an `Agent`."""
    port = free_port()
    namespace, _, name = service.partition("/")
    settings = {
        "port": port,
        "component-port": model_port,
        "log-url": log_url,
        "log-mode": "all",
        "source-uri": pod,
        "inference-service": name,
        "namespace": namespace,
        "component": "predictor",
        "metadata-headers": ",".join(headers),
        "metadata-annotations": annotations,
    }
    arguments = [text for option, value in settings.items() for text in (f"--{option}", str(value))]
    probe = {"tcpSocket": {"port": model_port, "host": "127.0.0.1"}, "successThreshold": 1}
    # It also listens on the socket "@/kserve/agent.sock": a name of the whole machine on Linux, a file elsewhere.
    (folder / "@" / "kserve").mkdir(parents=True)
    log = folder / "agent.log"
    with (Path(tempfile.gettempdir()) / f"driftloop-agent-{os.getuid()}.lock").open("a") as only, log.open("wb") as output:
        fcntl.flock(only, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [binary, *arguments],
            cwd=folder,
            env={**os.environ, "SERVING_READINESS_PROBE": json.dumps(probe), "SERVING_LOGGING_CONFIG": LOGGING},
            stdout=output,
            stderr=output,
        )
        try:
            assert poll_until(lambda: _listens(port) or process.poll() is not None, timeout=20)
            assert process.poll() is None, log.read_text(encoding="utf-8")
            yield Agent(process, port, log)
            assert process.poll() is None, log.read_text(encoding="utf-8")
        finally:
            process.kill()  # asked kindly, it waits half a minute for Kubernetes
            process.wait()


def _listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Client:
    """Asks a model over HTTP, one request after the other, and keeps count of what a payload logger must have posted.

    Each request has an X-Request-Id of its own; every other one also sets Ce-Id.
    """

    def __init__(self, port, name):
        self._port = port
        self._name = name
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self.rows = 0
        self.answered = []
        self.refused = []
        self.read = 0

    @property
    def posted(self):
        """Events: both halves of what was answered with 200, the request alone of what was refused."""
        return 2 * (len(self.answered) + self.read) + len(self.refused)

    def predict(self, rows, form="v1"):
        """Ask for predictions of `rows`, which must be answered; `form` is v1, v1 by name, v2 or v2 binary."""
        path, body, headers = FORMS[form](self._name, rows)
        number, status, answer = self._ask("POST", path, body, headers)
        assert status == 200, (form, status, answer)
        self.answered.append(number)
        self.rows += len(rows)

    def mistake(self, body, headers=()):
        """Ask for something that must be refused."""
        number, status, answer = self._ask(
            "POST", f"/v1/models/{self._name}:predict", body, {"Content-Type": "application/json", **dict(headers)}
        )
        assert status >= 400, answer
        self.refused.append(number)

    def look(self, path):
        """GET what is no prediction."""
        _, status, answer = self._ask("GET", path, None, {})
        assert status == 200, answer
        self.read += 1

    def _ask(self, method, path, body, headers):
        number = len(self.answered) + len(self.refused) + self.read
        own = {"X-Request-Id": f"r{number}"} | ({"Ce-Id": f"c{number}"} if number % 2 else {})
        self._connection.request(method, path, body, {**own, **headers})
        answer = self._connection.getresponse()
        return number, answer.status, answer.read()


FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def _v1(name, rows):
    return f"/v1/models/{name}:predict", json.dumps({"instances": rows}), {"Content-Type": "application/json"}


def _v1_by_name(name, rows):
    return _v1(name, [dict(zip(FEATURES, row, strict=True)) for row in rows])


def _v2(name, rows):
    cells = [value for row in rows for value in row]
    document = {"inputs": [{"name": "input-0", "shape": [len(rows), 4], "datatype": "FP64", "data": cells}]}
    return f"/v2/models/{name}/infer", json.dumps(document), {"Content-Type": "application/json"}


def _v2_binary(name, rows):
    raw = np.array(rows, dtype="<f8").tobytes()
    tensor = {"name": "input-0", "shape": [len(rows), 4], "datatype": "FP64", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return f"/v2/models/{name}/infer", head + raw, headers


FORMS = {"v1": _v1, "v1 by name": _v1_by_name, "v2": _v2, "v2 binary": _v2_binary}
MISTAKES = (
    (b'{"instances": [[5.1, 3.5, 1.4]]}', {}),  # a feature is missing
    (b'{"instances": [[5.1, 3.5, 1.4, 0.2]', {}),
    (gzip.compress(b'{"instances": [[5.1, 3.5, 1.4, 0.2]]}'), {"Content-Encoding": "gzip"}),  # KServe's server takes none
)
