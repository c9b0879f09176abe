"""A scikit-learn model from the repository behind KServe's own ModelServer, swapped without a pause when a version is promoted.

    POST /v1/models/NAME:predict                  {"instances": [[..], ..]} or [{"feature": ..}, ..] -> {"predictions": [..]}
    POST /v2/models/NAME/infer                    one [n, features] tensor, or one tensor per feature -> output "predict"
    GET  /v2/models/NAME                          the inputs by the schema, and the live version
    POST /v2/repository/models/NAME/load          read CURRENT again and swap; a version that cannot be loaded leaves the old one live
    POST /v2/repository/models/NAME/unload

Only `driftloop serve` imports this module: it imports KServe, which takes seconds.
"""

import logging
import socket
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import ClientDisconnect

from inference.errors import ServiceError
from inference.kserve_import import DataPlane, InvalidInput, ModelNotFound, ModelNotReady, model_server
from inference.pairing import ANNOTATION
from inference.predict_log import PredictLog
from inference.predictor import LiveModels, Predictor
from inference.tap import App, Message, Receive, Send, Tap, TapMiddleware
from inference.versions import Repository

logger = logging.getLogger(__name__)

MAX_BODY = 16 * 2**20
"""The most that one request may hold, in bytes: what the monitor reads of one event (inference/payload.py's bounds)."""


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
