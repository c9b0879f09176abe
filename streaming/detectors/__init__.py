"""Online detectors: one file each; the union on `kind` is the registry."""

from typing import Annotated

from pydantic import Field

from streaming.detectors.adwin import Adwin
from streaming.detectors.kswin import Kswin
from streaming.detectors.page_hinkley import PageHinkley

DetectorSpec = Annotated[Adwin | PageHinkley | Kswin, Field(discriminator="kind")]

__all__ = ["Adwin", "DetectorSpec", "Kswin", "PageHinkley"]
