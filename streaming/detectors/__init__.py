"""Online detectors: one file each; the unions on `kind` are the registry: of those on features, and of those on labelled errors."""

from typing import Annotated

from pydantic import Field

from streaming.detectors.adwin import Adwin, ErrorAdwin
from streaming.detectors.ddm import Ddm
from streaming.detectors.eddm import Eddm
from streaming.detectors.hddm_a import HddmA
from streaming.detectors.hddm_w import HddmW
from streaming.detectors.kswin import Kswin
from streaming.detectors.page_hinkley import ErrorPageHinkley, PageHinkley

DetectorSpec = Annotated[Adwin | PageHinkley | Kswin, Field(discriminator="kind")]
ErrorDetectorSpec = Annotated[ErrorAdwin | Ddm | Eddm | HddmA | HddmW | ErrorPageHinkley, Field(discriminator="kind")]

__all__ = [
    "Adwin",
    "Ddm",
    "DetectorSpec",
    "Eddm",
    "ErrorAdwin",
    "ErrorDetectorSpec",
    "ErrorPageHinkley",
    "HddmA",
    "HddmW",
    "Kswin",
    "PageHinkley",
]
