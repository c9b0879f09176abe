"""Limits: what a model's predictions may not go over. A limit is a frozen spec; `build` makes the judge with its memory.

Four kinds, one file each: Evidently's tests over the window (evidently.py), data quality (quality.py), online detectors, river's
(detector.py), and the budget of false alarms, kept by a CUSUM of ranks (budget.py).
"""

from streaming.core.limits.budget import BudgetLimit
from streaming.core.limits.detector import DetectorLimit
from streaming.core.limits.evidently import EvidentlyLimit
from streaming.core.limits.quality import QualityLimit
from streaming.core.limits.seam import Detector, Judge, Limit

__all__ = ["BudgetLimit", "Detector", "DetectorLimit", "EvidentlyLimit", "Judge", "Limit", "QualityLimit"]
