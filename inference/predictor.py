"""A scikit-learn model from the repository behind KServe's own ModelServer, swapped without a pause when a version is promoted.

    POST /v1/models/NAME:predict                  {"instances": [[..], ..]} or [{"feature": ..}, ..] -> {"predictions": [..]}
    POST /v2/models/NAME/infer                    one [n, features] tensor, or one tensor per feature -> output "predict"
    GET  /v2/models/NAME                          the inputs by the schema, and the live version
    POST /v2/repository/models/NAME/load          read CURRENT again and swap; a version that cannot be loaded leaves the old one live
    POST /v2/repository/models/NAME/unload

Only `driftloop serve` imports this module: it imports KServe, which takes seconds.
"""

import asyncio
import logging
import math
import socket
import struct
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import orjson
from starlette.requests import ClientDisconnect

from inference.errors import ServiceError, VersionError
from inference.predict_log import PredictLog
from inference.tap import ANNOTATION, EXCHANGE, App, Message, Receive, Send, Tap, TapMiddleware
from inference.versions import Feature, Repository, Schema, Version


@contextmanager
def _no_arguments() -> Any:
    """KServe reads sys.argv when it is imported, abbreviations included: our `--log` would become its `--log_config_file`."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = argv


with _no_arguments():
    import kserve
    from kserve import model_server
    from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.infer_type import InferInput, InferOutput, InferRequest, InferResponse

logger = logging.getLogger(__name__)

INLINE_ROWS = 64
"""Larger requests are answered in a thread, so that health checks and other clients do not wait for them."""

MAX_ROWS = 100_000
MAX_BODY = 16 * 2**20
"""The most that one request may hold: what the monitor reads of one event (inference/payload.py's bounds)."""


@dataclass(frozen=True, slots=True)
class Live:
    """A loaded version; one immutable value, so that a request sees one version from its first to its last row."""

    version: Version
    estimator: Any
    order: tuple[str, ...] | None
    """The column names the estimator was fitted with (it wants a DataFrame), or None (it wants an array)."""
    takes_missing: bool

    @classmethod
    def load(cls, version: Version) -> "Live":
        """VersionError when the file is not the deployed one, or the model in it does not fit the version's schema."""
        estimator = version.load_model()
        names = version.schema.names
        if not callable(getattr(estimator, "predict", None)):
            raise VersionError(f"{version.path}: model.joblib holds a {type(estimator).__name__}; it must be an estimator with predict()")
        width = getattr(estimator, "n_features_in_", len(names))
        if width != len(names):
            raise VersionError(f"{version.path}: the model takes {width} features, the schema has {len(names)}: {', '.join(names)}")
        fitted = getattr(estimator, "feature_names_in_", None)
        order = None if fitted is None else tuple(str(name) for name in fitted)
        if order is not None and set(order) != set(names):
            raise VersionError(f"{version.path}: the model takes the features {', '.join(order)}, the schema has {', '.join(names)}")
        return cls(version, estimator, order, _takes_missing(estimator))

    def answer(self, rows: list[list[Any]]) -> np.ndarray[Any, Any]:
        """One prediction per row; InvalidInput names the first cell that will not do."""
        features = self.version.schema.features
        columns = [_column(feature, [row[i] for row in rows], self.takes_missing) for i, feature in enumerate(features)]
        try:
            return np.asarray(self.estimator.predict(self._matrix(columns)))
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"the model refused the rows: {error}") from error

    def _matrix(self, columns: list[list[Any]]) -> Any:
        features = self.version.schema.features
        dtypes = [np.float64 if feature.kind == "numeric" else np.object_ for feature in features]
        arrays = {f.name: np.array(column, dtype=dtype) for f, column, dtype in zip(features, columns, dtypes, strict=True)}
        if self.order is not None:
            import pandas

            return pandas.DataFrame({name: arrays[name] for name in self.order})
        return np.column_stack([array.astype(np.object_) if np.object_ in dtypes else array for array in arrays.values()])


class Predictor(kserve.Model):  # type: ignore[misc]
    """KServe's view of one model; `load` swaps the live version, `predict` answers with whichever is live as it begins."""

    def __init__(self, repository: Repository, model: str) -> None:
        super().__init__(model.partition("/")[2])
        self._repository = repository
        self._model = model
        self.log: PredictLog | None = None
        self._live: Live | None = None

    @property
    def version(self) -> str:
        """The live version's name, "" before the first load."""
        return self._live.version.version if self._live else ""

    def load(self) -> bool:
        """Load the repository's current version and put it in place at once; VersionError leaves everything as it was."""
        name = self._repository.current(self._model)
        if name is None:
            known = ", ".join(self._repository.versions(self._model)) or "none"
            raise VersionError(
                f"{self._model} has no live version in {self._repository.root} (versions there: {known}); train and promote one first: "
                "`driftloop pipeline run`, or Repository.write and Repository.promote of inference.versions"
            )
        loaded, before = Live.load(self._repository.read(self._model, name)), self.version
        self._live = loaded
        self.ready = True
        logger.info("%s: version %s is live (before: %s)", self._model, name, before or "none")
        return True

    def get_input_types(self) -> list[dict[str, Any]]:
        features = self._live.version.schema.features if self._live else ()
        return [{"name": f.name, "datatype": "FP64" if f.kind == "numeric" else "BYTES", "shape": [-1]} for f in features]

    def get_output_types(self) -> list[dict[str, Any]]:
        classes = getattr(self._live.estimator, "classes_", None) if self._live else None
        return [
            {"name": "predict", "datatype": _output("predict", np.asarray([0.0] if classes is None else classes)).datatype, "shape": [-1]}
        ]

    async def predict(self, payload: Any, headers: Mapping[str, str] | None = None, response_headers: Any = None) -> Any:
        live = self._live
        if live is None:
            raise ModelNotReady(self.name)
        v2 = isinstance(payload, InferRequest)
        rows = _rows_v2(payload, live.version.schema) if v2 else _rows_v1(payload, live.version.schema)
        answers = live.answer(rows) if len(rows) <= INLINE_ROWS else await asyncio.to_thread(live.answer, rows)
        version = live.version.version
        exchange = EXCHANGE.get()
        if exchange is not None:
            exchange.version = version
        if self.log is not None:
            id_ = exchange.id if exchange is not None else (headers or {}).get("ce-id") or str(uuid4())
            self.log.write(id_=id_, model=self._model, version=version, inputs=rows, outputs=answers.tolist())
        if not v2:
            return {"predictions": answers.tolist()}
        return InferResponse(
            model_name=self.name,
            model_version=version,
            response_id=payload.id or str(uuid4()),
            infer_outputs=[_output("predict", answers)],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


class LiveModels(kserve.ModelRepository):  # type: ignore[misc]
    """KServe's model repository with our one model: the V2 repository API's load reads the current version anew."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self._predictor = predictor
        self._loading = asyncio.Lock()  # one load at a time: a slow, older one must not win over a newer one

    async def load(self, name: str) -> bool:
        if name != self._predictor.name:
            raise VersionError(f"this predictor serves {self._predictor.name!r}, not {name!r}")
        async with self._loading:
            try:
                await asyncio.to_thread(self._predictor.load)
            except VersionError as error:
                logger.warning("%s: version %s stays live: %s", name, self._predictor.version, error)
                raise
            self.update(self._predictor)
        return True


class _Plane(DataPlane):  # type: ignore[misc]
    """KServe's data plane, but a body it stumbles over is the client's mistake (400) and not the server's (500)."""

    def decode(self, body: Any, headers: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().decode(body, headers, *args, **kwargs)
        except InvalidInput:
            raise
        except Exception as error:
            raise InvalidInput(f"the request cannot be read: {type(error).__name__}: {error}") from error

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        return {**await super().model_metadata(model_name), "versions": [self.get_model_from_registry(model_name).version]}


class _Bounded:
    """An ASGI application around KServe's: a body over the bound is answered with 413 before it is in memory.

    KServe reads any body whole and parses it in the event loop, health checks waiting.
    """

    def __init__(self, app: App, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size, refused = 0, False
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")

        async def bounded() -> Message:
            nonlocal size, refused
            message = {"type": "http.disconnect"} if refused else await receive()
            size += len(message.get("body", b""))
            if size > self._limit:
                await refuse()
                return {"type": "http.disconnect"}
            return message

        async def answered(message: Message) -> None:
            if not refused:
                await send(message)

        async def refuse() -> None:
            nonlocal refused
            refused = True
            text = f"the body has more than {self._limit} bytes, which is the most that is read; send the rows in parts"
            body = orjson.dumps({"error": text})
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 413, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        if announced.isdigit() and int(announced) > self._limit:
            await refuse()
            return
        with suppress(ClientDisconnect):  # nobody is there to be answered, and it is no error of ours
            await self._app(scope, bounded, answered)


class _Server(model_server.ModelServer):  # type: ignore[misc]
    """KServe's server on the given host (its own binds every interface), with the tap running around it."""

    def __init__(self, predictor: Predictor, tap: Tap | None, host: str, **settings: Any) -> None:
        super().__init__(registered_models=LiveModels(predictor), workers=1, enable_latency_logging=False, **settings)
        self.dataplane = _Plane(model_registry=self.registered_models)
        self._tap = tap
        self._host = host

    async def _serve(self) -> None:
        self._rest_server.config.host = self._host
        async with self._tap or nullcontext():
            await super()._serve()


def serve(
    repository: Path,
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    tap: str | None = None,
    predict_log: Path | None = None,
    source: str | None = None,
    annotation: str = ANNOTATION,
    component: str = "predictor",
    enable_grpc: bool = False,
    grpc_port: int = 8081,
    max_body: int = MAX_BODY,
) -> None:
    """Serve the current version of `model` ("namespace/inferenceservice") until SIGTERM; the tap is flushed before this returns.

    `host` is the loopback for a laptop; on a cluster give 0.0.0.0. `source` is the events' Ce-Source, the pod's name; the
    host's name unless given. VersionError: nothing to serve. ServiceError: the port, the predict log or the tap's URL will not do.
    """
    _check_port(host, port)
    if enable_grpc:
        if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            raise ServiceError(f"KServe's gRPC server listens on every interface, not on {host} alone; give host 0.0.0.0 or leave gRPC off")
        _check_port(host, grpc_port)
    predictor = Predictor(Repository(repository), model)
    tapped = None
    if tap is not None:
        tapped = Tap(
            tap,
            model=model,
            source=source or socket.gethostname(),
            version=lambda: predictor.version,
            annotation=annotation,
            component=component,
        )
    predictor.load()
    with PredictLog(predict_log) if predict_log is not None else nullcontext() as predictor.log:
        _quiet()
        if tapped is not None:
            model_server.app.add_middleware(TapMiddleware, tap=tapped)
            if enable_grpc:
                logger.warning("the tap sees HTTP requests only; what clients ask over gRPC gives no events")
        model_server.app.add_middleware(_Bounded, limit=max_body)  # added last: it comes before the tap
        server = _Server(predictor, tapped, host, http_port=port, grpc_port=grpc_port, enable_grpc=enable_grpc)
        logger.info("%s version %s on http://%s:%d", model, predictor.version, host, port)
        server.start([predictor])


def _check_port(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ServiceError(f"{port} is no port; give one from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ServiceError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; stop what uses it, or give another host or port"
        ) from error


class _NoClientErrors(logging.Filter):
    """KServe writes a traceback for each request that it refuses; a client's mistake is told to the client."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, InvalidInput | ModelNotFound | ModelNotReady)


def _quiet() -> None:
    """Logging is the CLI's: KServe must not configure it, nor may it or FastAPI write a line per request."""
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")
    model_server.args.configure_logging = False
    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.access", "uvicorn.error", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("kserve").addFilter(_NoClientErrors())


def _rows_v1(payload: Any, schema: Schema) -> list[list[Any]]:
    if isinstance(payload, bytes):  # KServe leaves a body undecoded unless it is called JSON; curl -d calls it a form
        try:
            payload = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise InvalidInput(f"the body is no JSON: {error}") from error
    names = schema.names
    right = f'send {{"instances": [[{", ".join(names)}], ...]}} or a list of objects with these names'
    if not isinstance(payload, dict) or "instances" not in payload:
        raise InvalidInput(f'the body has no "instances"; {right}')
    instances = payload["instances"]
    if not isinstance(instances, list) or not instances:
        raise InvalidInput(f'"instances" must be a list with at least one row, not {_short(instances)}; {right}')
    _check_count(len(instances))
    rows = []
    for number, row in enumerate(instances):
        if isinstance(row, dict):
            missing = [name for name in names if name not in row]
            if missing:
                raise InvalidInput(f"instance {number} lacks the features {', '.join(missing)}; {right}")
            rows.append([row[name] for name in names])
        elif isinstance(row, list):
            if len(row) != len(names):
                raise InvalidInput(f"instance {number} has {len(row)} values, the model takes {len(names)}; {right}")
            rows.append(row)
        else:
            raise InvalidInput(f"instance {number} is {_short(row)}, not a row of {len(names)} values; {right}")
    return rows


def _rows_v2(request: Any, schema: Schema) -> list[list[Any]]:
    names = schema.names
    tensors = {tensor.name: tensor for tensor in request.inputs}
    right = f"send one tensor of shape [n, {len(names)}], or one of shape [n] for each of {', '.join(names)}"
    if len(tensors) != len(request.inputs):
        raise InvalidInput(f"two input tensors have the same name; {right}")
    if set(names) <= tensors.keys() and (len(names) > 1 or len(tensors[names[0]].shape) == 1):
        columns = [_cells(tensors[name], "[n] or [n, 1]", lambda shape: len(shape) == 1 or shape[1:] == [1]) for name in names]
        if len({len(column) for column in columns}) != 1:
            raise InvalidInput(f"the tensors differ in length: {', '.join(f'{n} {len(c)}' for n, c in zip(names, columns, strict=True))}")
        rows = [list(row) for row in zip(*columns, strict=True)]
    elif len(request.inputs) == 1:
        cells = _cells(request.inputs[0], f"[n, {len(names)}]", lambda shape: shape[1:] == [len(names)])
        rows = [cells[start : start + len(names)] for start in range(0, len(cells), len(names))]
    else:
        missing = [name for name in names if name not in tensors]
        raise InvalidInput(f"there is no input tensor for the features {', '.join(missing)}; {right}")
    if not rows:
        raise InvalidInput(f"the request has no rows; {right}")
    _check_count(len(rows))
    return rows


def _check_count(rows: int) -> None:
    if rows > MAX_ROWS:
        raise InvalidInput(f"the request has {rows} rows, at most {MAX_ROWS} are answered at once; send it in parts")


def _cells(tensor: InferInput, wanted: str, fits: Any) -> list[Any]:
    shape = tensor.shape
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape) or not fits(shape):
        raise InvalidInput(f"input {tensor.name!r} has the shape {_short(shape)}, the model takes {wanted}")
    if tensor._raw_data is not None:
        try:
            cells = tensor.as_numpy().ravel().tolist()
        except (ValueError, struct.error) as error:
            raise InvalidInput(f"input {tensor.name!r}: its bytes are no {tensor.datatype} tensor of shape {shape}: {error}") from error
    else:
        cells = list(tensor.data)
        if cells and isinstance(cells[0], list) and len(shape) == 2:
            cells = [cell for row in cells for cell in (row if isinstance(row, list) else [row])]
    if len(cells) != math.prod(shape):
        raise InvalidInput(f"input {tensor.name!r} has {len(cells)} values, its shape {shape} says {math.prod(shape)}")
    try:
        return [cell.decode() if isinstance(cell, bytes) else cell for cell in cells]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {tensor.name!r} has a text that is not UTF-8: {error}") from error


def _column(feature: Feature, cells: Iterable[Any], takes_missing: bool) -> list[Any]:
    column = []
    for number, cell in enumerate(cells):
        missing = cell is None or (isinstance(cell, float) and math.isnan(cell))
        if missing and takes_missing:
            column.append(math.nan if feature.kind == "numeric" else None)
        elif missing or not _fits(feature, cell):
            what = "a finite number" if feature.kind == "numeric" else "a text, a number or a boolean"
            raise InvalidInput(f"row {number}: {feature.name!r} is {_short(cell)}, the model takes {what}")
        else:
            column.append(cell)
    return column


def _fits(feature: Feature, cell: Any) -> bool:
    if feature.kind == "categorical":
        return isinstance(cell, str | int | float)
    try:
        return isinstance(cell, int | float) and not isinstance(cell, bool) and math.isfinite(cell)
    except OverflowError:
        return False


def _takes_missing(estimator: Any) -> bool:
    """Whether scikit-learn says that the estimator (a pipeline: its first step) accepts missing values."""
    steps = getattr(estimator, "steps", None)
    first = steps[0][1] if steps else estimator
    try:
        from sklearn.utils import get_tags

        return bool(get_tags(first).input_tags.allow_nan)
    except (ImportError, AttributeError, TypeError):  # scikit-learn 1.5, or an estimator that is not scikit-learn's
        return bool(hasattr(first, "_get_tags") and first._get_tags().get("allow_nan", False))


def _output(name: str, answers: np.ndarray[Any, Any]) -> Any:
    if answers.dtype.kind == "O":
        answers = np.array(answers.tolist())
    datatype = {"i": "INT64", "u": "INT64", "b": "BOOL", "f": "FP64"}.get(answers.dtype.kind, "BYTES")
    values = answers.ravel().tolist()
    return InferOutput(
        name=name, shape=list(answers.shape), datatype=datatype, data=[str(v) for v in values] if datatype == "BYTES" else values
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
