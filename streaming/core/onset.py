"""Where in the window a change most likely began."""

from collections.abc import Sequence

import numpy as np

from streaming.core.reference import Reference
from streaming.core.verdict import Finding
from streaming.core.window import SlidingWindow


def drift_began(window: SlidingWindow, reference: Reference, findings: Sequence[Finding]) -> int:
    """The row of the window (0 = oldest) at which the change most likely began.

    The maximum-likelihood change point of a shift of known size: over the drifting columns' ranks, the last minimum of the
    cumulated sum of (deviation from 1/2, towards the change) minus half of its size in the newest quarter of the window
    (Page 1954). 0 when the whole window lies behind the change, or nothing drifts.
    """
    drifting = {finding.feature for finding in findings if finding.over}
    if not drifting:
        return 0
    evidence = np.zeros(len(window))
    for index, column in enumerate(reference.columns):
        if column.name in drifting:
            deviations = np.nan_to_num(column.ranks(window.codes[index]) - 0.5)
            newest = float(deviations[-max(1, len(deviations) // 4) :].mean())
            evidence += deviations * np.sign(newest) - abs(newest) / 2.0
    if not evidence.any():
        return 0
    before = np.concatenate([[0.0], np.cumsum(evidence)[:-1]])
    return int(len(before) - 1 - np.argmin(before[::-1]))
