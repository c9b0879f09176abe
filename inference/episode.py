"""An episode of trouble, logged when it begins and when it is over, however many failures it is made of."""

import logging
import time
from collections.abc import Callable


class Episode:
    """Failures that follow each other within `quiet` seconds are one episode; a success ends it once it was quiet for so long."""

    def __init__(self, logger: logging.Logger, *, quiet: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._quiet = quiet
        self._clock = clock
        self._last = 0.0
        self.failures = 0

    def failed(self, message: str, *values: object) -> None:
        """Count a failure; the first of an episode is logged."""
        self.failures += 1
        self._last = self._clock()
        if self.failures == 1:
            self._logger.warning(message, *values)

    def succeeded(self, message: str) -> None:
        """Perhaps the episode is over: then `message` is logged, its one %d the number of failures."""
        if self.failures and self._clock() - self._last >= self._quiet:
            self._logger.warning(message, self.failures)
            self.failures = 0
