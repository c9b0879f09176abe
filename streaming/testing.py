"""Stand-ins for the outside world, for tests and demonstrations: an HTTP receiver, a runner of runs, KServe's traffic."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import orjson

from inference.event import ACTION_FINISHED, PROMOTED, REQUEST, RESPONSE, RETRAINING_FINISHED, Event, deterministic_id, own_event
from inference.log import Record
from inference.pairing import ANNOTATION
from pipelines.submit import RunRequest, RunState
from streaming.actions.outbox import Item, Outbox

_MAX_BODY = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver answers: a status with headers and a body; or nothing: it waits until closed (`hang`) or hangs up (`drop`)."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    hang: bool = False
    drop: bool = False


HANG = Answer(hang=True)
DROP = Answer(drop=True)


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


class Receiver:
    """An HTTP server on a free port of this machine that records every request.

    It answers with `answers` in order, then with 200. `on_request` is called with each request before it is answered.

        with Receiver([Answer(500)]) as receiver:
            ...post to receiver.url("/hook")...
            assert receiver.wait_for(2)
    """

    def __init__(self, answers: Iterable[Answer] = (), *, on_request: Callable[[Received], object] | None = None, port: int = 0) -> None:
        self._answers = list(answers)
        self._on_request = on_request
        self._requests: list[Received] = []
        self._arrived = threading.Condition()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def requests(self) -> list[Received]:
        with self._arrived:
            return list(self._requests)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def wait_for(self, count: int, timeout: float = 10.0) -> bool:
        """Wait until `count` requests have come; False when they have not within `timeout` seconds."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self._requests) >= count, timeout)

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _record(self, request: Received) -> Answer:
        with self._arrived:
            self._requests.append(request)
            answer = self._answers.pop(0) if self._answers else Answer()
            self._arrived.notify_all()
        if self._on_request is not None:
            self._on_request(request)
        return answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = min(int(self.headers.get("Content-Length", 0)), _MAX_BODY)
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(length)
                if len(body) < length:
                    # Whoever went away in the middle has asked for nothing.
                    self.close_connection = True
                    return
                answer = receiver._record(Received(self.command, self.path, headers, body))
                if answer.hang:
                    receiver._closing.wait()
                if answer.hang or answer.drop:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST  # noqa: N815 - the base class's name

            def log_message(self, format: str, *args: Any) -> None:
                return

        return Handler


class StandInRunner:
    """A `Runner` whose runs are what the test says: `states` by run id, "unknown" before `start`, "running" after it.

    `start_errors` are raised by the first calls of `start`, one each.
    """

    def __init__(self, *, start_errors: Iterable[Exception] = ()) -> None:
        self.started: list[RunRequest] = []
        self.stopped: list[str] = []
        self.states: dict[str, RunState] = {}
        self.start_errors = list(start_errors)
        self.state_error: Exception | None = None

    def start(self, request: RunRequest) -> None:
        if self.start_errors:
            raise self.start_errors.pop(0)
        if request.run_id not in self.states:
            self.started.append(request)
            self.states[request.run_id] = RunState("running", "")

    def state(self, run_id: str) -> RunState:
        if self.state_error is not None:
            raise self.state_error
        return self.states.get(run_id, RunState("unknown", ""))

    def stop(self, run_id: str) -> None:
        self.stopped.append(run_id)


def free_port() -> int:
    """A port that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def poll_until(condition: Callable[[], object], timeout: float = 10.0) -> bool:
    """Call `condition` until it holds; False when it has not within `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def prediction(
    model: str, id_: str, rows: Sequence[Sequence[Any]], predictions: Sequence[Any], *, version: str = ""
) -> tuple[Event, Event]:
    """Request and response of one prediction, as KServe's logger posts them (protocol V1); `version` as pod annotation."""
    namespace, _, name = model.partition("/")
    extensions = {"namespace": namespace, "inferenceservicename": name}
    if version:
        extensions["annotations"] = orjson.dumps({ANNOTATION: version}).decode()
    bodies = orjson.dumps({"instances": rows}), orjson.dumps({"predictions": predictions})
    request, response = (
        Event(id_, "pod-1", type_, "2026-10-01T00:00:00Z", "application/json", extensions, body)
        for type_, body in zip((REQUEST, RESPONSE), bodies, strict=True)
    )
    return request, response


def promotion(model: str, version: str, previous: str = "", run_id: str = "") -> Event:
    """The event that announces a version."""
    body = {"model": model, "version": version, "previous": previous, "run_id": run_id, "metrics": {}, "repository": ""}
    return own_event(PROMOTED, body, model=model, source="test", id_=deterministic_id("promoted", model, version), now=0.0)


def finished(model: str, run_id: str, outcome: str = "kept", version: str = "") -> Event:
    """The event that tells a run's end."""
    told = {"reason": "", "champion": None, "challenger": None, "metric": "accuracy", "margin": 0.0, "rows": 0}
    body = {"model": model, "run_id": run_id, "outcome": outcome, "version": version, **told}
    return own_event(RETRAINING_FINISHED, body, model=model, source="test", id_=deterministic_id("finished", run_id), now=0.0)


def records(events: Iterable[Event], *, partition: int = 0, first: int = 0, every: float = 1.0) -> list[Record]:
    """Events as they would stand on one partition, `every` seconds apart."""
    return [Record(partition, first + number, every * (first + number), event) for number, event in enumerate(events)]


def open_outbox(events: list[Event], *, state: Sequence[Mapping[str, Any]] = (), clock: Callable[[], float] = time.time) -> Outbox:
    """An outbox whose partition 0 is open, with the entries of `state`; what it tells the log is added to `events`."""
    outbox = Outbox(events.append, clock=clock)
    outbox.open(0, state)
    return outbox


def put(outbox: Outbox, key: str, kind: str, payload: Mapping[str, Any], *, now: float, not_before: float = 0.0) -> bool:
    """Put one entry of "default/iris" on partition 0; False when its key is known."""
    return outbox.put_all([Item(key, kind, payload, not_before)], partition=0, model="default/iris", now=now) == 1


def told_ends(events: Iterable[Event]) -> list[dict[str, Any]]:
    """What the log was told about entries that came to an end: {"key", "kind", "end", "note"} each."""
    return [orjson.loads(event.data) for event in events if event.type == ACTION_FINISHED]
