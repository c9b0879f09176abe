"""A scikit-learn model from the repository, as KServe's ModelServer wants it: answers, and is swapped without a pause."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np

from inference.errors import VersionError
from inference.kserve_import import InferRequest, InferResponse, InvalidInput, ModelNotReady, kserve
from inference.model_inputs import cells_of, output, rows_v1, rows_v2, takes_missing
from inference.predict_log import PredictLog
from inference.tap import EXCHANGE
from inference.versions import Repository, Version

logger = logging.getLogger(__name__)

INLINE_ROWS = 64
"""Larger requests are answered in a thread, so that health checks and other clients do not wait for them."""


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
        return cls(version, estimator, order, takes_missing(estimator))

    def answer(self, rows: list[list[Any]]) -> np.ndarray[Any, Any]:
        """One prediction per row; InvalidInput names the first cell that will not do."""
        features = self.version.schema.features
        columns = [cells_of(feature, [row[i] for row in rows], self.takes_missing) for i, feature in enumerate(features)]
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
            {"name": "predict", "datatype": output("predict", np.asarray([0.0] if classes is None else classes)).datatype, "shape": [-1]}
        ]

    async def predict(self, payload: Any, headers: Mapping[str, str] | None = None, response_headers: Any = None) -> Any:
        live = self._live
        if live is None:
            raise ModelNotReady(self.name)
        v2 = isinstance(payload, InferRequest)
        rows = rows_v2(payload, live.version.schema) if v2 else rows_v1(payload, live.version.schema)
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
            infer_outputs=[output("predict", answers)],
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
