"""KServe, imported so that it does not take our command line for its own. Importing it takes seconds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _no_arguments() -> Iterator[None]:
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

__all__ = [
    "DataPlane",
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InvalidInput",
    "ModelNotFound",
    "ModelNotReady",
    "kserve",
    "model_server",
]
