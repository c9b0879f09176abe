"""Champion against challenger on the same hold-out: who is better, by how much, and why that was the answer."""

import math
from dataclasses import dataclass
from typing import Any

from inference.errors import DriftloopError, PipelineError
from inference.versions import Version
from pipelines.tables import Table
from pipelines.train import predictions

CLASSIFICATION = ("accuracy", "f1_macro", "balanced_accuracy")
REGRESSION = ("r2", "neg_mean_absolute_error")
METRICS = CLASSIFICATION + REGRESSION

_TOLERANCE = 1e-12
"""0.8 >= 0.7 + 0.1 is false in floating point."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The verdict; `scores` are the challenger's. `champion` is None when no version is live or it could not predict the hold-out."""

    better: bool
    reason: str
    metric: str
    margin: float
    champion: float | None
    challenger: float | None
    champion_version: str
    scores: dict[str, float]
    rows: int


def evaluate(challenger: Any, champion: Version | None, holdout: Table, *, metric: str, margin: float, floor: float) -> Evaluation:
    """Better means: champion + margin or more; without a champion, `floor` or more."""
    if metric not in METRICS:
        raise PipelineError(f"metric {metric!r} is not known; one of {', '.join(METRICS)}")
    if not math.isfinite(margin) or not math.isfinite(floor):
        raise PipelineError(f"margin and floor must be finite numbers, not {margin} and {floor}")
    own = predictions(challenger, holdout.features)
    scores = _scores(holdout.labels, own, metric)
    score = scores.get(metric)
    theirs, trouble = (None, "") if champion is None else _champion(champion, holdout, metric)
    better, reason = _verdict(score, theirs, trouble, champion, metric, margin, floor, len(own))
    name = champion.version if champion is not None else ""
    return Evaluation(better, reason, metric, margin, theirs, score, name, scores, len(own))


def _champion(champion: Version, holdout: Table, metric: str) -> tuple[float | None, str]:
    """The champion's score on the hold-out; a champion that cannot predict it scores None, and the trouble is told."""
    try:
        frame = holdout.frame[list(champion.schema.names)]
        answers = predictions(champion.load_model(), frame)
        score = _scores(holdout.labels, answers, metric).get(metric)
    except DriftloopError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - a stranger's estimator may raise anything; it must not stop a better one
        return None, f"{type(error).__name__}: {error}"
    return score, "" if score is not None else f"its {metric} is not a number"


def _verdict(
    score: float | None, theirs: float | None, trouble: str, champion: Version | None, metric: str, margin: float, floor: float, rows: int
) -> tuple[bool, str]:
    on = f"on {rows} held-out rows"
    if score is None:
        return False, f"the challenger's {metric} {on} is not a number"
    if champion is None:
        better = score >= floor - _TOLERANCE
        return better, f"no version is live; the challenger's {metric} {on} is {score:.4f}, {_side(better)} the floor of {floor:.4f}"
    if theirs is None:
        better = score >= floor - _TOLERANCE
        worst = f"version {champion.version} cannot predict these rows and counts as worst ({trouble})"
        return better, f"{worst}; the challenger's {metric} {on} is {score:.4f}, {_side(better)} the floor of {floor:.4f}"
    better = score - theirs >= margin - _TOLERANCE
    needed = f"{'at least' if better else 'not'} the margin of {margin:.4f} above"
    return better, f"the challenger's {metric} {on} is {score:.4f}, {needed} version {champion.version}'s {theirs:.4f}"


def _side(better: bool) -> str:
    return "not below" if better else "below"


def _scores(truth: list[Any], answers: list[Any], metric: str) -> dict[str, float]:
    """Every metric of the named metric's family; those that are not finite are left out."""
    from sklearn import metrics

    if metric in CLASSIFICATION:
        # Classes are compared as text: a label that came as "1" is the class 1.
        real, said = _texts(truth), _texts(answers)
        found = {
            "accuracy": metrics.accuracy_score(real, said),
            "f1_macro": metrics.f1_score(real, said, average="macro", zero_division=0),
            "balanced_accuracy": _balanced(real, said),
        }
    else:
        found = {
            "r2": metrics.r2_score(truth, answers) if len(truth) > 1 else math.nan,
            "neg_mean_absolute_error": -metrics.mean_absolute_error(truth, answers),
        }
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _balanced(real: list[str], said: list[str]) -> float:
    """The mean recall over the classes there are; scikit-learn's own warns when a class is predicted that never occurs."""
    from sklearn.metrics import recall_score

    return float(recall_score(real, said, average="macro", labels=sorted(set(real)), zero_division=0))


def _texts(values: list[Any]) -> list[str]:
    from inference.payload import category

    return [category(value) or "" for value in values]
