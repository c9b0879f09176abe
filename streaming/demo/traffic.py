"""The demo's clients: real iris rows, asked of the model one by one, and their labels a little later.

Quiet first: rows drawn from the data set as it is. Then drifted: sepal and petal length arrive in inches instead of
centimetres, and the mix of species shifts. The species never changes with the unit, so the labels stay true.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from inference.event import LABEL, deterministic_id, own_event, to_http

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
TARGET = "species"
IN_INCHES = ("sepal_length", "petal_length")
DRIFTED_MIX = (0.10, 0.35, 0.55)
_CM_PER_INCH = 2.54


def iris() -> tuple[Any, Any]:
    """The data set: 150 rows of four measurements in centimetres, and their species (0, 1, 2)."""
    from sklearn.datasets import load_iris

    features, species = load_iris(return_X_y=True)
    return features, species


@dataclass(frozen=True, slots=True)
class Answer:
    """One prediction that was asked for: when, whether its row was drifted, what it truly was, what the model said."""

    sent: float
    drifted: bool
    species: int
    predicted: int

    @property
    def correct(self) -> bool:
        return self.species == self.predicted


class Rows:
    """An endless draw of iris rows; seeded, so that every run of the demo asks the same."""

    def __init__(self, seed: int) -> None:
        self._features, self._species = iris()
        self._random = np.random.default_rng(seed)

    def draw(self, *, drifted: bool) -> tuple[list[float], int]:
        """One row in the order of FEATURES, and its species."""
        if not drifted:
            number = int(self._random.integers(len(self._species)))
            return [float(value) for value in self._features[number]], int(self._species[number])
        species = int(self._random.choice(3, p=DRIFTED_MIX))
        number = int(self._random.choice(np.flatnonzero(self._species == species)))
        row = [float(value) for value in self._features[number]]
        inches = [value / _CM_PER_INCH if name in IN_INCHES else value for name, value in zip(FEATURES, row, strict=True)]
        return [round(value, 2) for value in inches], species


class Traffic(threading.Thread):
    """Asks `rate` predictions a second of `url` and tells their labels to `gateway_url` `label_lag` seconds later.

    `drift` switches the drawn rows; `stop` ends it after the labels that are still due. `error` holds what went wrong, if anything did.
    """

    def __init__(self, url: str, gateway_url: str, *, model: str, seed: int, rate: float, label_lag: float) -> None:
        super().__init__(name="traffic", daemon=True)
        self._url = url
        self._gateway_url = gateway_url
        self._model = model
        self._seed = seed
        self._rows = Rows(seed)
        self._pause = 1.0 / rate
        self._label_lag = label_lag
        self._due: deque[tuple[float, str, int]] = deque()
        self._drifted = threading.Event()
        self._ended = threading.Event()
        self.answers: list[Answer] = []
        self.labels = 0
        self.error: str = ""

    def drift(self) -> None:
        """From the next row on, drifted ones."""
        self._drifted.set()

    def stop(self) -> None:
        self._ended.set()
        self.join(timeout=30)

    def run(self) -> None:
        try:
            with httpx.Client(timeout=10.0) as client:
                following = time.monotonic()
                while not self._ended.is_set():
                    self._ask(client)
                    self._tell(client, time.monotonic() - self._label_lag)
                    following = max(following + self._pause, time.monotonic() - self._pause)
                    self._ended.wait(max(0.0, following - time.monotonic()))
                self._tell(client, float("inf"))
        except (httpx.HTTPError, KeyError, ValueError, IndexError) as error:
            self.error = f"{type(error).__name__}: {error}"

    def _ask(self, client: httpx.Client) -> None:
        drifted = self._drifted.is_set()
        row, species = self._rows.draw(drifted=drifted)
        id_ = deterministic_id("demo", self._seed, len(self.answers))
        sent = time.time()
        response = client.post(self._url, json={"instances": [row]}, headers={"Ce-Id": id_})
        response.raise_for_status()
        self.answers.append(Answer(sent, drifted, species, int(response.json()["predictions"][0])))
        self._due.append((time.monotonic(), id_, species))

    def _tell(self, client: httpx.Client, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            _, id_, species = self._due.popleft()
            body = {"prediction_id": id_, "labels": [species]}
            label = own_event(LABEL, body, model=self._model, source="driftloop-demo", id_=deterministic_id("label", id_), now=time.time())
            headers, data = to_http(label)
            client.post(self._gateway_url, headers=headers, content=data).raise_for_status()
            self.labels += 1
