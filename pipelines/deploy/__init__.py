"""Where a new model version goes: the seam `DeployTarget` and its members.

`local.py` is a model repository on a file system and the predictor that serves from it. The seam is cut so that two more fit,
each a file of its own beside it: Kubernetes (the same immutable folder under a new storage URI, a server-side apply on the
InferenceService with the live version as an annotation to compare against, then the wait until it is really there), and GitOps
(a commit of that manifest, pushed and awaited). All share one promise: **when `deploy` raises, what was live before is live.**
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from inference.versions import Schema, Version


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model that won its evaluation: files, and what its version will say of itself."""

    model: str
    run_id: str
    model_file: Path
    reference_file: Path
    schema: Schema
    metrics: Mapping[str, float] = field(default_factory=dict)
    span: Mapping[str, Any] = field(default_factory=dict)


class DeployTarget(Protocol):
    """A place where one version of a model is live at a time."""

    def live(self, model: str) -> str | None:
        """The version that is live now, or None; asked before the evaluation, which is made against this version."""
        ...

    def deploy(self, candidate: Candidate, *, expected: str | None) -> Version:
        """Make a new version of the candidate, put it live, and prove by a prediction that it answers.

        `expected` is the version that the evaluation was made against. Idempotent by `run_id`: a repeated call finds the
        version that the first one made. DeployError: it is not live, and `expected` is (another version is live instead of
        `expected`: that one stays). VersionError: the place itself is damaged; nothing was changed.
        """
        ...

    def roll_back(self, version: Version, to: str | None) -> None:
        """Undo `deploy`, when something after it failed: `to` is live again. Does nothing when `version` is no longer live.

        DeployError when that failed, too: then a person must look.
        """
        ...
